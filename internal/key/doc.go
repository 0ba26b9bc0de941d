// Package key mints, parses and hashes API keys. It is the only home of plaintext: the type Plaintext redacts itself when it is
// printed, logged or marshalled, and is opened by Reveal alone.
//
// A key is "lk_" + 43 characters of base62 (32 random bytes) + 6 characters of base62 (CRC-32 of what stands before them), 52
// characters in all. Prefix and checksum let secret scanners find keys, and let garbage be refused without a look-up; the idea of
// both is GitHub's (https://github.blog/engineering/platform-security/behind-githubs-new-authentication-token-formats/).
//
// Input: random bytes, or what a caller presented. Output: plaintext, prefix, SHA-256. Nothing in it starts a goroutine.
package key
