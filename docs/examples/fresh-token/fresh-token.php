<?php
// Calls an API with a user's fresh access token. Plain PHP with curl, for any app.
//
//   TOKENS_URL=http://127.0.0.1:7460 TOKENS_SECRET=renewd_shop.… \
//   API_URL=https://auth.example.com/oauth/userinfo php fresh-token.php propelauth 31c41c16-…

declare(strict_types=1);

/** A renewd that has no token for the user now: its code says what to do. */
final class NoToken extends RuntimeException
{
    public function __construct(public readonly array $problem)
    {
        parent::__construct($problem['code'] . ': ' . ($problem['detail'] ?? $problem['title']));
    }
}

/** Answers [status, body, headers by lower-case name]. */
function get(string $url, string $bearer): array
{
    $headers = [];
    $curl = curl_init($url);
    curl_setopt_array($curl, [
        CURLOPT_RETURNTRANSFER => true,
        CURLOPT_TIMEOUT => 30, // renewd answers within 20 s
        CURLOPT_HTTPHEADER => ["Authorization: Bearer $bearer"],
        CURLOPT_HEADERFUNCTION => function ($_, string $line) use (&$headers): int {
            [$name, $value] = array_pad(explode(':', $line, 2), 2, '');
            $headers[strtolower($name)] = trim($value);
            return strlen($line);
        },
    ]);
    $body = curl_exec($curl);
    if ($body === false) {
        throw new RuntimeException('curl: ' . curl_error($curl));
    }
    return [curl_getinfo($curl, CURLINFO_RESPONSE_CODE), $body, $headers];
}

/** A token of the user that is good for another five minutes. renewd renews it first if it must. */
function freshToken(string $provider, string $user): string
{
    $path = '/v1/users/' . rawurlencode($provider) . '/' . rawurlencode($user) . '/token?min_valid=5m';
    [$status, $body] = get(getenv('TOKENS_URL') . $path, getenv('TOKENS_SECRET'));
    $answer = json_decode($body, true, flags: JSON_THROW_ON_ERROR);
    if ($status !== 200) {
        throw new NoToken($answer);
    }
    return $answer['access_token'];
}

[, $provider, $user] = $argv;
try {
    [$status, $body] = get(getenv('API_URL'), freshToken($provider, $user));
    echo "the API answers $status: $body\n";
} catch (NoToken $no) {
    if (in_array($no->problem['code'], ['sign_in_again', 'signed_out'], true)) {
        // The session has ended: send the user to your login.
        fwrite(STDERR, "sign in again: " . ($no->problem['reason'] ?? $no->problem['code']) . "\n");
        exit(3);
    }
    if ($no->problem['status'] === 503) {
        fwrite(STDERR, "try again in {$no->problem['retry_after_seconds']} s\n");
        exit(4);
    }
    throw $no;
}
