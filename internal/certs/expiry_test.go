package certs

import (
	"slices"
	"testing"
	"time"
)

func TestExpiry(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	authorityAt := func(at time.Time) Bundle {
		b, err := NewAuthority(at)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	older, newer, stranger := authorityAt(now.Add(-24*time.Hour)), authorityAt(now), authorityAt(now.Add(time.Hour))
	server, _, _ := Identities()
	leaf, err := Issue(newer, server, now)
	if err != nil {
		t.Fatal(err)
	}
	leafEnd, newerEnd := now.Add(LeafLifetime), now.Add(AuthorityLifetime)
	for name, tc := range map[string]struct {
		bundle    Bundle
		authority time.Time // zero: an error
	}{
		"a certificate and its authority":        {Bundle{CA: newer.Cert, Cert: leaf.Cert}, newerEnd},
		"of several, the one that signed it":     {Bundle{CA: slices.Concat(older.Cert, newer.Cert), Cert: leaf.Cert}, newerEnd},
		"where none signed it, the first to end": {Bundle{CA: slices.Concat(stranger.Cert, older.Cert), Cert: leaf.Cert}, newerEnd.Add(-24 * time.Hour)},
		"a chain begins with the leaf":           {Bundle{CA: newer.Cert, Cert: slices.Concat(leaf.Cert, older.Cert)}, newerEnd},
		"a key is passed over":                   {Bundle{CA: newer.Cert, Cert: slices.Concat(leaf.Key, leaf.Cert)}, newerEnd},
		"no authority":                           {Bundle{Cert: leaf.Cert}, time.Time{}},
		"no certificate":                         {Bundle{CA: newer.Cert, Cert: leaf.Key}, time.Time{}},
		"no certificate in the block": {
			Bundle{CA: newer.Cert, Cert: []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")}, time.Time{},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			authority, end, err := Expiry(tc.bundle)
			if tc.authority.IsZero() {
				if err == nil {
					t.Fatalf("Expiry = %s, %s", authority, end)
				}
				return
			}
			if err != nil || !authority.Equal(tc.authority) || !end.Equal(leafEnd) {
				t.Errorf("Expiry = %s, %s, %v; want %s, %s", authority, end, err, tc.authority, leafEnd)
			}
		})
	}
}
