package main

import (
	"bytes"
	"errors"
	"flag"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

func TestParseConfig(t *testing.T) {
	t.Parallel()
	defaults := config{
		xdsAddress:      "cp:18000",
		xdsServerName:   "latchkey-xds",
		certDir:         "/etc/latchkey/certs",
		socket:          "/run/latchkey/enforcer.sock",
		stateDir:        "/var/lib/latchkey",
		nodeID:          "the-host",
		metricsAddress:  ":9091",
		startGrace:      3 * time.Second,
		watchGrace:      2 * time.Second,
		maxRequestBytes: policy.DefaultMaxRequestBytes,
		logLevel:        slog.LevelInfo,
		accessLog:       accessLogRefused,
	}
	with := func(change func(*config)) config {
		c := defaults
		change(&c)
		return c
	}
	noHost := func() (string, error) { return "", errors.New("no host name") }
	host := func() (string, error) { return "the-host", nil }
	for name, tc := range map[string]struct {
		args     string
		hostname func() (string, error)
		want     config
		wantErr  []string // empty: none
	}{
		"the control plane's address is enough": {args: "--xds-address cp:18000", want: defaults},
		"every flag is heeded": {
			args: "--xds-address=[::1]:1 --xds-server-name n --cert-dir c --socket s --state-dir d --node-id i --metrics-address 127.0.0.1:2 " +
				"--debug-address localhost:3 --start-grace 0s --watch-grace 1s --max-request-bytes 5 --log-level debug --access-log all",
			hostname: noHost,
			want: config{
				xdsAddress: "[::1]:1", xdsServerName: "n", certDir: "c", socket: "s", stateDir: "d", nodeID: "i",
				metricsAddress: "127.0.0.1:2", debugAddress: "localhost:3", watchGrace: time.Second, maxRequestBytes: 5, logLevel: slog.LevelDebug,
				accessLog: accessLogAll,
			},
		},
		"the version needs nothing else": {
			args: "--version", hostname: noHost,
			want: with(func(c *config) { c.xdsAddress, c.nodeID, c.version = "", "", true }),
		},
		"no address says which flag to set":      {args: "", wantErr: []string{"--xds-address is missing"}},
		"an address without a port is refused":   {args: "--xds-address cp", wantErr: []string{"--xds-address must be host:port"}},
		"a host without a name asks for one":     {args: "--xds-address cp:1", hostname: noHost, wantErr: []string{"--node-id"}},
		"an unknown flag is refused":             {args: "--nonsense", wantErr: []string{"nonsense"}},
		"an argument that is no flag is refused": {args: "--xds-address cp:1 stray", wantErr: []string{`"stray"`}},
		"an unknown level is refused":            {args: "--xds-address cp:1 --log-level loud", wantErr: []string{"log-level"}},
		"debug pages without a port are refused": {args: "--xds-address cp:1 --debug-address localhost", wantErr: []string{"--debug-address must be host:port"}},
		"an unknown access log is refused": {
			args: "--xds-address cp:1 --access-log some", wantErr: []string{"access-log", `"some"`, "refused", "all", "none"},
		},
		"a grace in the past is refused":             {args: "--xds-address cp:1 --start-grace -1s", wantErr: []string{"--start-grace"}},
		"bodies without any room are refused":        {args: "--xds-address cp:1 --max-request-bytes 0", wantErr: []string{"--max-request-bytes"}},
		"bodies too large for a message are refused": {args: "--xds-address cp:1 --max-request-bytes 1073741825", wantErr: []string{"--max-request-bytes"}},
		"all mistakes are named at once": {
			args:    "--metrics-address nine --socket= --cert-dir=",
			wantErr: []string{"--xds-address", "--metrics-address", "--socket", "--cert-dir"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.hostname == nil {
				tc.hostname = host
			}
			got, err := parseConfig(strings.Fields(tc.args), tc.hostname, &bytes.Buffer{})
			if len(tc.wantErr) == 0 && err != nil {
				t.Fatal(err)
			}
			for _, part := range tc.wantErr {
				if err == nil || !strings.Contains(err.Error(), part) {
					t.Errorf("error %v does not name %s", err, part)
				}
			}
			if len(tc.wantErr) > 0 {
				return
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(config{})); diff != "" {
				t.Errorf("config (-want +got):\n%s", diff)
			}
		})
	}
}

func TestHelpNamesEveryFlag(t *testing.T) {
	t.Parallel()
	var usage bytes.Buffer
	if _, err := parseConfig([]string{"--help"}, nil, &usage); !errors.Is(err, flag.ErrHelp) {
		t.Fatalf("parseConfig: %v", err)
	}
	for _, name := range []string{
		"xds-address", "xds-server-name", "cert-dir", "socket", "state-dir", "node-id", "metrics-address", "start-grace",
		"max-request-bytes", "log-level", "access-log", "debug-address", "version",
	} {
		if !strings.Contains(usage.String(), "-"+name) {
			t.Errorf("the help does not name --%s", name)
		}
	}
}

func TestSampler(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	s := newSampler(10, func() time.Time { return now })
	count := func(tries int) int {
		n := 0
		for range tries {
			if s.allow() {
				n++
			}
		}
		return n
	}
	if got := count(25); got != 10 {
		t.Errorf("at once %d of 25 pass, want 10", got)
	}
	now = now.Add(500 * time.Millisecond)
	if got := count(25); got != 5 {
		t.Errorf("after half a second %d pass, want 5", got)
	}
	now = now.Add(time.Hour)
	if got := count(25); got != 10 {
		t.Errorf("after an hour %d pass, want 10: what is saved is bounded", got)
	}
	now = now.Add(-time.Hour)
	if got := count(5); got != 0 {
		t.Errorf("with the clock set back %d pass, want 0", got)
	}
}
