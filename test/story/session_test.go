package story

import (
	"context"
	"errors"
	"flag"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	poll "k8s.io/apimachinery/pkg/util/wait"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

var update = flag.Bool("update", false, "write into the documents what their lines print")

// TestStory runs the sessions of the documents. Each has a shell of its own.
func TestStory(t *testing.T) {
	for _, test := range []struct{ file, heading string }{
		{"docs/story.md", ""},
		{"README.md", "## A session"},
	} {
		t.Run(test.file, func(t *testing.T) {
			path := filepath.Join(system.Root, filepath.FromSlash(test.file))
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			before, session, after := section(t, string(content), test.heading)
			awaitTomorrow(t)
			got := play(t, session)
			if *update {
				if err := os.WriteFile(path, []byte(before+got+after), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(session, got); diff != "" {
				t.Errorf("%s shows something else than its lines print; see whether that is meant, and then: make test PACKAGES=./test/story TESTFLAGS=-update (-want +got)\n%s", test.file, diff)
			}
		})
	}
}

// section is what stands between a heading and the next one of its level; without a heading, all.
func section(t *testing.T, document, heading string) (before, within, after string) {
	t.Helper()
	if heading == "" {
		return "", document, ""
	}
	at := strings.Index(document, "\n"+heading+"\n")
	if at < 0 {
		t.Fatalf("there is no %q", heading)
	}
	at += len(heading) + 2
	level := "\n" + heading[:strings.Index(heading, " ")+1]
	end := strings.Index(document[at:], level)
	if end < 0 {
		return document[:at], document[at:], ""
	}
	return document[:at], document[at : at+end], document[at+end:]
}

// play runs the lines that begin with "$ " in the console blocks of a document, and puts in place of what follows them what they print.
func play(t *testing.T, document string) string {
	t.Helper()
	var out strings.Builder
	s := newShell(t, "")
	fakes := newDisguise(system.GatewayURL(), time.Now())
	inConsole, ran := false, 0
	for line := range strings.Lines(document) {
		text := strings.TrimSuffix(line, "\n")
		switch {
		case text == "```console":
			inConsole = true
			out.WriteString(line)
		case text == "```":
			inConsole = false
			out.WriteString(line)
		case !inConsole:
			out.WriteString(line)
		case strings.HasPrefix(text, "$ "):
			ran++
			out.WriteString(line)
			settled := settle(t)
			printed, code := s.run(strings.TrimPrefix(text, "$ "))
			if want := codeOf(printed); code != want {
				t.Errorf("%s: exit code %d, want %d by what it says:\n%s", text, code, want, printed)
			}
			if printed != "" {
				out.WriteString(fakes.of(strings.TrimSuffix(printed, "\n")) + "\n")
			}
			if strings.Contains(text, "latchkey try ") && code == 0 {
				settled()
			}
			if strings.Contains(text, "latchkey delete key ") && code == 0 {
				awaitRefusal(t, s)
			}
		}
	}
	if ran == 0 {
		t.Fatal("no line begins with \"$ \"")
	}
	return out.String()
}

// awaitRefusal waits until the gateway knows that the shell's key is gone: a person's next line comes later than that.
func awaitRefusal(t *testing.T, s *shell) {
	t.Helper()
	key, _ := s.run(`printf %s "$OPENAI_API_KEY"`)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := poll.PollUntilContextCancel(ctx, 20*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, system.GatewayURL()+"/v1/key", http.NoBody)
		if err != nil {
			return false, err
		}
		request.Header.Set("Authorization", "Bearer "+key)
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			return false, err
		}
		return answer.StatusCode == http.StatusUnauthorized, answer.Body.Close()
	}); err != nil {
		t.Fatalf("wait until the deleted key is refused: %v", err)
	}
}

// awaitTomorrow lets the day end that is about to: what a session has spent would begin anew in the middle of it.
func awaitTomorrow(t *testing.T) {
	t.Helper()
	now := time.Now().UTC()
	if left := now.Truncate(24 * time.Hour).Add(24 * time.Hour).Sub(now); left < time.Minute {
		t.Logf("the day ends in %s", left)
		<-time.After(left)
	}
}

// codeOf is the exit code that goes with what a command says.
func codeOf(printed string) int {
	for line := range strings.Lines(printed) {
		if strings.HasPrefix(line, "error: ") || strings.HasPrefix(line, "Error from server") || strings.HasPrefix(line, "A request would be refused") {
			return 1
		}
	}
	return 0
}

// requests are how many the status of all applications and of all keys accounts for.
func requests(ctx context.Context) (ofApps, ofKeys int64, err error) {
	var apps v1alpha1.ApplicationList
	var keys v1alpha1.APIKeyList
	if err := errors.Join(system.Client.List(ctx, &apps), system.Client.List(ctx, &keys)); err != nil {
		return 0, 0, err
	}
	count := func(u *v1alpha1.Usage) int64 {
		if u == nil || u.Month == nil {
			return 0
		}
		return u.Month.Requests
	}
	for i := range apps.Items {
		ofApps += count(apps.Items[i].Status.Usage)
	}
	for i := range keys.Items {
		ofKeys += count(keys.Items[i].Status.Usage)
	}
	return ofApps, ofKeys, nil
}

// settle has somebody at the keyboard who gives the spend time to show: once the call of a line is done, it waits until the status of the
// application and of the key account for it.
func settle(t *testing.T) (wait func()) {
	t.Helper()
	apps, keys, err := requests(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := poll.PollUntilContextCancel(ctx, 50*time.Millisecond, true, func(ctx context.Context) (bool, error) {
			nowApps, nowKeys, err := requests(ctx)
			return nowApps > apps && nowKeys > keys, err
		}); err != nil {
			t.Fatalf("wait until what was spent shows: %v", err)
		}
	}
}
