package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// mostOverlap is the longest overlap that the API takes.
const mostOverlap = 720 * time.Hour

// parseOverlap reads how long an earlier key is honoured, such as 0s, 24h or 7d.
func parseOverlap(s string) (*metav1.Duration, error) {
	d, err := time.ParseDuration(s)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		var n int
		n, err = strconv.Atoi(days)
		d = time.Duration(min(max(n, -1), 1000)) * 24 * time.Hour
	}
	if err != nil || d < 0 || d > mostOverlap {
		return nil, fmt.Errorf("%q is no overlap: write a time from 0s, which ends the earlier key at once, to 720h, such as 24h or 7d", s)
	}
	return &metav1.Duration{Duration: d}, nil
}

// setOverlap changes how long an earlier key is honoured; "none" goes back to the default.
func setOverlap(k *v1alpha1.APIKey, s string) error {
	var overlap *metav1.Duration
	if s != unset {
		var err error
		if overlap, err = parseOverlap(s); err != nil {
			return fmt.Errorf("--overlap: %w", err)
		}
	}
	if k.Spec.Rotation == nil { // a generation would have to be written along, and rotate
		return fmt.Errorf("--overlap: the key was never rotated, and has no earlier one; it can be given with: kubectl latchkey rotate %s -n %s --overlap …", k.Name, k.Namespace)
	}
	k.Spec.Rotation.Overlap = overlap
	return nil
}

// earlierKey is what is known of the key that a rotation has replaced.
type earlierKey struct {
	prefix   string // may be empty
	ends     time.Time
	honoured bool // still
}

// earlierOf tells of the key before the last rotation; ok: there was one.
func earlierOf(k *v1alpha1.APIKey, now time.Time) (e earlierKey, ok bool) {
	r := k.Status.Rotation
	if r == nil || r.RotationTime == nil || r.PreviousEndTime == nil {
		return earlierKey{}, false
	}
	e = earlierKey{prefix: oneLine(r.PreviousKeyPrefix), ends: r.PreviousEndTime.Time}
	e.honoured = r.PreviousKeyFingerprint != "" && now.Before(e.ends)
	return e, true
}

// name is how the key is called in messages, after "the earlier one".
func (e earlierKey) name() string {
	if e.prefix == "" {
		return ""
	}
	return ", " + e.prefix + "…,"
}

// says is until when the key is honoured, or since when it is not.
func (e earlierKey) says(cal calendar) string {
	if e.honoured {
		return fmt.Sprintf("is honoured until %s (%s)", moment(e.ends, cal.zone), in(cal.now, e.ends))
	}
	return "has been refused since " + moment(e.ends, cal.zone)
}

// rotationPending reports whether a rotation was asked for that has not been carried out.
func rotationPending(k *v1alpha1.APIKey) bool {
	return k.Status.SecretName != "" && k.RotationGeneration() > rotationDone(k)
}

// rotationDone is the generation that has been carried out; 0: none.
func rotationDone(k *v1alpha1.APIKey) int64 {
	if k.Status.Rotation == nil {
		return 0
	}
	return k.Status.Rotation.Generation
}

// rotateHint is how a lost key is replaced.
func rotateHint(k *v1alpha1.APIKey) string {
	return fmt.Sprintf("for a new key: kubectl latchkey rotate %s -n %s", k.Name, k.Namespace)
}

// tellEarlier says what has become of the key from before the last rotation.
func (p *plugin) tellEarlier(ctx context.Context, c *cluster, k *v1alpha1.APIKey) error {
	cal, err := p.readCalendar(ctx, c)
	if err != nil {
		return err
	}
	if e, rotated := earlierOf(k, cal.now); rotated {
		p.say("The key from before the rotation%s %s.", e.name(), e.says(cal))
	}
	return nil
}

// rotationSection writes which key was replaced when, and until when it is honoured.
func (s *sheet) rotationSection(k *v1alpha1.APIKey, cal calendar) {
	if k.Spec.Rotation == nil && k.Status.Rotation == nil {
		return
	}
	s.head("Rotation")
	generation := strconv.FormatInt(k.RotationGeneration(), 10)
	if rotationPending(k) {
		s.line("  Generation", cell{fmt.Sprintf("%s, of which %d is carried out", generation, rotationDone(k)), warn})
	} else {
		s.text("  Generation", generation)
	}
	s.text("  Overlap", lengthText(k.Overlap()))
	r := k.Status.Rotation
	if r == nil || r.RotationTime == nil {
		s.text("  Last rotated", "never")
		return
	}
	s.text("  Last rotated", fmt.Sprintf("%s (%s)", moment(r.RotationTime.Time, cal.zone), in(cal.now, r.RotationTime.Time)))
	if e, rotated := earlierOf(k, cal.now); rotated {
		s.text("  Earlier key", orElse(e.prefix, "it")+" "+e.says(cal))
	}
}

// lengthText writes a length of time without the zeros behind it: 24h, not 24h0m0s.
func lengthText(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// earlierCells are the columns of the earlier key and its end.
func earlierCells(k *v1alpha1.APIKey, cal calendar) []cell {
	e, rotated := earlierOf(k, cal.now)
	switch {
	case !rotated:
		return []cell{text(none), text(none)}
	case e.honoured:
		return []cell{text(orNone(e.prefix)), {in(cal.now, e.ends), warn}}
	}
	return []cell{text(orNone(e.prefix)), text(in(cal.now, e.ends))}
}
