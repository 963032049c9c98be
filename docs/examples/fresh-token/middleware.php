<?php
// A middleware as Laravel has them. It gives each request the user's fresh access token, and sends
// the user to the login when the session has ended at the provider. Copy the class into
// app/Http/Middleware; the few lines at the end stand in for a kernel, so that it runs alone:
//
//   TOKENS_URL=… TOKENS_SECRET=… php middleware.php propelauth 31c41c16-…

declare(strict_types=1);

final class FreshAccessToken
{
    /** $request->user() has the provider's id of the user; $next is the rest of the app. */
    public function handle(object $request, Closure $next): mixed
    {
        [$status, $answer] = $this->ask($request->user()->provider, $request->user()->provider_id);
        if (in_array($answer['code'] ?? '', ['sign_in_again', 'signed_out'], true)) {
            $request->session()->invalidate();
            return redirect('/login', $answer['reason'] ?? $answer['code']);
        }
        if ($status !== 200) {
            return unavailable($answer['retry_after_seconds'] ?? 5);
        }
        $request->attributes['access_token'] = $answer['access_token'];
        return $next($request);
    }

    private function ask(string $provider, string $user): array
    {
        $curl = curl_init(getenv('TOKENS_URL') . '/v1/users/' . rawurlencode($provider) . '/' . rawurlencode($user) . '/token');
        curl_setopt_array($curl, [
            CURLOPT_RETURNTRANSFER => true,
            CURLOPT_TIMEOUT => 30,
            CURLOPT_HTTPHEADER => ['Authorization: Bearer ' . getenv('TOKENS_SECRET')],
        ]);
        $body = curl_exec($curl);
        return [curl_getinfo($curl, CURLINFO_RESPONSE_CODE), json_decode((string) $body, true) ?? []];
    }
}

// What Laravel has, in as many words as the example needs.

function redirect(string $to, string $why): string
{
    return "302 $to ($why)";
}

function unavailable(int $seconds): string
{
    return "503 try again in $seconds s";
}

final class Request
{
    public array $attributes = [];
    public bool $signedIn = true;

    public function __construct(private string $provider, private string $id)
    {
    }

    public function user(): object
    {
        return (object) ['provider' => $this->provider, 'provider_id' => $this->id];
    }

    public function session(): self
    {
        return $this;
    }

    public function invalidate(): void
    {
        $this->signedIn = false;
    }
}

$request = new Request($argv[1], $argv[2]);
echo (new FreshAccessToken())->handle($request, fn (Request $r): string => '200 with a token of ' . strlen($r->attributes['access_token']) . " bytes"), "\n";
echo $request->signedIn ? "still signed in\n" : "signed out here too\n";
