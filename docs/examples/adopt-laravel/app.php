<?php
// A small app in Laravel's shape, for docs/adopt-laravel.md and its test: a users table as
// PropelAuth's guide has it, tokens as the encrypted cast writes them, a sign-in, and the job that
// renews. It knows nothing of renewd. The provider is `renewd stand-in`.
//
//   DB_DSN='pgsql:host=127.0.0.1;dbname=shop' DB_USER=shop DB_PASSWORD=… APP_KEY=base64:… \
//   AUTH_URL=http://127.0.0.1:7470 CLIENT_ID=renewd-dev php app.php signin jane

declare(strict_types=1);

date_default_timezone_set('UTC');

/** Illuminate\Encryption\Encrypter with AES-256-CBC: encryptString and decryptString. */
final class Encrypter
{
    public function __construct(private readonly string $key) {}

    public function encrypt(string $text): string
    {
        $iv = random_bytes(16);
        $value = openssl_encrypt($text, 'aes-256-cbc', $this->key, 0, $iv);
        $iv = base64_encode($iv);
        $mac = $this->mac($iv, $value);
        return base64_encode(json_encode(
            ['iv' => $iv, 'value' => $value, 'mac' => $mac, 'tag' => ''],
            JSON_UNESCAPED_SLASHES,
        ));
    }

    public function decrypt(string $payload): string
    {
        $p = json_decode(base64_decode($payload), true, flags: JSON_THROW_ON_ERROR);
        if (!hash_equals($this->mac($p['iv'], $p['value']), $p['mac'])) {
            throw new RuntimeException('The MAC is invalid.');
        }
        return openssl_decrypt($p['value'], 'aes-256-cbc', $this->key, 0, base64_decode($p['iv']));
    }

    private function mac(string $iv, string $value): string
    {
        return hash_hmac('sha256', $iv . $value, $this->key);
    }
}

/** Answers [status, decoded body]. */
function call(string $url, ?array $form = null, ?string $bearer = null): array
{
    $curl = curl_init($url);
    curl_setopt_array($curl, [
        CURLOPT_RETURNTRANSFER => true,
        CURLOPT_TIMEOUT => 30,
        CURLOPT_HTTPHEADER => $bearer === null ? [] : ["Authorization: Bearer $bearer"],
    ]);
    if ($form !== null) {
        curl_setopt($curl, CURLOPT_POSTFIELDS, http_build_query($form));
    }
    $body = curl_exec($curl);
    if ($body === false) {
        throw new RuntimeException(curl_error($curl));
    }
    return [curl_getinfo($curl, CURLINFO_RESPONSE_CODE), json_decode($body, true)];
}

final class App
{
    private PDO $db;
    private Encrypter $crypt;
    private string $auth;

    public function __construct()
    {
        $this->db = new PDO(getenv('DB_DSN'), getenv('DB_USER') ?: null,
            getenv('DB_PASSWORD') ?: null, [PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION]);
        $this->crypt = new Encrypter(base64_decode(substr(getenv('APP_KEY'), strlen('base64:'))));
        $this->auth = getenv('AUTH_URL');
    }

    /** The migrations of the guide. */
    public function migrate(): void
    {
        $id = $this->db->getAttribute(PDO::ATTR_DRIVER_NAME) === 'pgsql'
            ? 'BIGSERIAL PRIMARY KEY' : 'BIGINT UNSIGNED AUTO_INCREMENT PRIMARY KEY';
        $this->db->exec("CREATE TABLE users (
            id $id, name VARCHAR(255) NOT NULL, email VARCHAR(255) NULL, avatar VARCHAR(255) NULL,
            data TEXT NULL, email_verified_at TIMESTAMP NULL, propel_id VARCHAR(255) NOT NULL UNIQUE,
            propel_access_token TEXT NULL, propel_refresh_token TEXT NULL,
            requires_reauthentication BOOLEAN NOT NULL DEFAULT FALSE,
            is_active BOOLEAN NOT NULL DEFAULT TRUE, last_login_at TIMESTAMP NULL,
            created_at TIMESTAMP NULL, updated_at TIMESTAMP NULL)");
    }

    /** Runs statements that are read from standard input, one a line. */
    public function sql(): void
    {
        foreach (array_filter(array_map('trim', file('php://stdin'))) as $statement) {
            $this->db->exec($statement);
        }
    }

    /** The callback of the login: the provider has sent the user back with tokens. */
    public function signin(string ...$users): void
    {
        foreach ($users as $user) {
            [, $tokens] = call("$this->auth/_admin/login", ['user' => $user]);
            $now = date('Y-m-d H:i:s');
            $values = [
                'propel_access_token' => $this->crypt->encrypt($tokens['access_token']),
                'propel_refresh_token' => $this->crypt->encrypt($tokens['refresh_token']),
                'requires_reauthentication' => 'false', 'last_login_at' => $now, 'updated_at' => $now,
            ];
            if ($this->update($values, 'propel_id', $user) === 0) {
                $this->db->prepare('INSERT INTO users (name, propel_id, created_at) VALUES (?, ?, ?)')
                    ->execute([$user, $user, $now]);
                $this->update($values, 'propel_id', $user);
            }
        }
    }

    /** RefreshUserTokenJob of the guide for every user, as its scheduler runs it. */
    public function sweep(): void
    {
        $all = $this->db->query(
            'SELECT id, propel_refresh_token FROM users WHERE propel_refresh_token IS NOT NULL');
        foreach ($all->fetchAll(PDO::FETCH_ASSOC) as $user) {
            [$status, $tokens] = call("$this->auth/propelauth/oauth/token", [
                'grant_type' => 'refresh_token', 'client_id' => getenv('CLIENT_ID'),
                'refresh_token' => $this->crypt->decrypt($user['propel_refresh_token']),
            ]);
            $this->update([
                'propel_access_token' =>
                    $status === 200 ? $this->crypt->encrypt($tokens['access_token']) : null,
                'propel_refresh_token' =>
                    $status === 200 ? $this->crypt->encrypt($tokens['refresh_token']) : null,
                'updated_at' => date('Y-m-d H:i:s'),
            ], 'id', $user['id']);
        }
    }

    /** Calls the provider with each user's access token, and counts what came of it. */
    public function check(): void
    {
        $found = ['works' => 0, 'refused' => 0, 'must_sign_in' => 0, 'none' => 0];
        $all = $this->db->query(
            'SELECT propel_access_token AS token, requires_reauthentication AS flag FROM users');
        foreach ($all->fetchAll(PDO::FETCH_ASSOC) as $user) {
            if ($user['flag']) {
                $found['must_sign_in']++;
                continue;
            }
            if ($user['token'] === null) {
                $found['none']++;
                continue;
            }
            [$status] = call("$this->auth/propelauth/oauth/userinfo",
                bearer: $this->crypt->decrypt($user['token']));
            $found[$status === 200 ? 'works' : 'refused']++;
        }
        echo json_encode($found), "\n";
    }

    private function update(array $values, string $key, mixed $is): int
    {
        $set = implode(', ', array_map(fn ($column) => "$column = ?", array_keys($values)));
        $statement = $this->db->prepare("UPDATE users SET $set WHERE $key = ?");
        $args = array_map(
            fn ($value) => $value === 'false' && $this->mysql() ? 0 : $value, array_values($values));
        $statement->execute([...$args, $is]);
        return $statement->rowCount();
    }

    private function mysql(): bool
    {
        return $this->db->getAttribute(PDO::ATTR_DRIVER_NAME) === 'mysql';
    }
}

$app = new App();
[, $command] = $argv + [1 => ''];
match ($command) {
    'migrate' => $app->migrate(),
    'sql' => $app->sql(),
    'signin' => $app->signin(...array_slice($argv, 2)),
    'sweep' => $app->sweep(),
    'check' => $app->check(),
    default => exit("php app.php migrate|sql|signin USER…|sweep|check\n"),
};
