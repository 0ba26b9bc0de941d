package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// rotatedFor is a rotation of this very moment, whose earlier key is honoured for a while; 0: not at all.
func rotatedFor(overlap time.Duration) *v1alpha1.RotationStatus {
	r := &v1alpha1.RotationStatus{
		Generation: 1, RotationTime: new(metav1.NewTime(theMoment())), PreviousKeyPrefix: "lk_earlie",
		PreviousEndTime: new(metav1.NewTime(theMoment().Add(overlap))),
	}
	if overlap > 0 {
		r.PreviousKeyFingerprint = "0123456789abcdef"
	}
	return r
}

func TestParseOverlap(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"0s": 0, "0": 0, "90m": 90 * time.Minute, "24h": 24 * time.Hour, "1h30m": 90 * time.Minute, "0d": 0, "7d": 7 * 24 * time.Hour, "30d": 720 * time.Hour, "720h": 720 * time.Hour,
	} {
		if got, err := parseOverlap(in); err != nil || got.Duration != want {
			t.Errorf("%s: %v, %v, want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"", "-1s", "-1d", "31d", "720h1s", "7", "d", "1.5d", "1w", "none", "99999999999999999999d", "a day"} {
		if got, err := parseOverlap(in); err == nil {
			t.Errorf("%q: %v, want an error", in, got)
		}
	}
}

func TestEarlierKey(t *testing.T) {
	for name, test := range map[string]struct {
		status  *v1alpha1.RotationStatus
		later   time.Duration
		rotated bool
		says    string
		cells   []string
	}{
		"a key that was never rotated has none":        {nil, 0, false, "", []string{"<none>", "<none>"}},
		"nor has one minted with a generation":         {&v1alpha1.RotationStatus{Generation: 4}, 0, false, "", []string{"<none>", "<none>"}},
		"it is honoured for the overlap":               {rotatedFor(24 * time.Hour), time.Second, true, "is honoured until 2026-12-01 23:30:00 CET (in 23h)", []string{"lk_earlie", "in 23h"}},
		"and refused from its end on, to the second":   {rotatedFor(time.Hour), time.Hour, true, "has been refused since 2026-12-01 00:30:00 CET", []string{"lk_earlie", "0s ago"}},
		"without an overlap it is refused at once":     {rotatedFor(0), 0, true, "has been refused since 2026-11-30 23:30:00 CET", []string{"lk_earlie", "0s ago"}},
		"one that the status does not vouch for is so": {withoutFingerprint(rotatedFor(time.Hour)), 0, true, "has been refused since ", []string{"lk_earlie", "in 60m"}},
	} {
		t.Run(name, func(t *testing.T) {
			cal := berlin()
			cal.now = cal.now.Add(test.later)
			k := &v1alpha1.APIKey{Status: v1alpha1.APIKeyStatus{Rotation: test.status}}
			e, rotated := earlierOf(k, cal.now)
			if rotated != test.rotated || (rotated && !strings.HasPrefix(e.says(cal), test.says)) {
				t.Errorf("%v, %q; want %v, %q", rotated, e.says(cal), test.rotated, test.says)
			}
			var cells []string
			for _, c := range earlierCells(k, cal) {
				cells = append(cells, c.text)
			}
			if diff := cmp.Diff(test.cells, cells); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func withoutFingerprint(r *v1alpha1.RotationStatus) *v1alpha1.RotationStatus {
	r.PreviousKeyFingerprint = ""
	return r
}

func TestRotationSection(t *testing.T) {
	for name, test := range map[string]struct {
		spec   *v1alpha1.RotationSpec
		status *v1alpha1.RotationStatus
		want   string
	}{
		"nothing of a key that was never rotated": {nil, nil, ""},
		"one that was created with a generation":  {&v1alpha1.RotationSpec{Generation: 2}, &v1alpha1.RotationStatus{Generation: 2}, "Rotation:\n  Generation:         2\n  Overlap:            24h\n  Last rotated:       never\n"},
		"one that is about to be": {
			&v1alpha1.RotationSpec{Generation: 2, Overlap: &metav1.Duration{Duration: 90 * time.Minute}}, rotatedFor(0),
			"Rotation:\n  Generation:         2, of which 1 is carried out\n  Overlap:            1h30m\n" +
				"  Last rotated:       2026-11-30 23:30:00 CET (0s ago)\n  Earlier key:        lk_earlie has been refused since 2026-11-30 23:30:00 CET\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := &sheet{}
			s.rotationSection(&v1alpha1.APIKey{
				Spec: v1alpha1.APIKeySpec{Rotation: test.spec}, Status: v1alpha1.APIKeyStatus{SecretName: "s", Rotation: test.status},
			}, berlin())
			if diff := cmp.Diff(test.want, s.b.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestMayRotate(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*v1alpha1.APIKey, *rotate)
		says   string // empty: it may
	}{
		"a key that was never rotated may":          {func(*v1alpha1.APIKey, *rotate) {}, ""},
		"one that was long ago may":                 {func(k *v1alpha1.APIKey, _ *rotate) { k.Status.Rotation = rotatedFor(0) }, ""},
		"within the overlap it is not done lightly": {func(k *v1alpha1.APIKey, _ *rotate) { k.Status.Rotation = rotatedFor(time.Hour) }, "lk_earlie…, is honoured until 2026-12-01 00:30:00 CET (in 60m)\nRotating again ends the earlier one now"},
		"an overlap of its own does not make it so": {func(k *v1alpha1.APIKey, o *rotate) {
			k.Status.Rotation, o.given = rotatedFor(time.Hour), &metav1.Duration{Duration: 1}
		}, "Rotating again"},
		"force makes it so": {func(k *v1alpha1.APIKey, o *rotate) { k.Status.Rotation, o.force = rotatedFor(time.Hour), true }, ""},
		"whoever wants none honoured may": {func(k *v1alpha1.APIKey, o *rotate) {
			k.Status.Rotation, o.given = rotatedFor(time.Hour), &metav1.Duration{}
		}, ""},
		"while one is under way there is no other": {func(k *v1alpha1.APIKey, _ *rotate) { k.Spec.Rotation = &v1alpha1.RotationSpec{Generation: 1} }, "is under way, to generation 1; no controller has looked at it yet"},
		"what is not minted cannot be replaced":    {func(k *v1alpha1.APIKey, o *rotate) { k.Status.SecretName, o.force = "", true }, "has no key yet that could be rotated"},
		"nor what is being deleted, whatever is said": {func(k *v1alpha1.APIKey, o *rotate) {
			k.DeletionTimestamp, o.force = new(metav1.NewTime(theMoment())), true
		}, "is being deleted"},
	} {
		t.Run(name, func(t *testing.T) {
			k, o := inOrder().key, &rotate{}
			test.change(k, o)
			err := o.mayRotate(k, berlin())
			if (err == nil) != (test.says == "") || (err != nil && !strings.Contains(err.Error(), test.says)) {
				t.Errorf("%v, want %q", err, test.says)
			}
		})
	}
}
