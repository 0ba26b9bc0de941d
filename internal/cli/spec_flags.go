package cli

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// unset is what a flag is given to take a field away.
const unset = "none"

// specFlags are the fields that APIKeys and Applications have in common, as flags. Only those that were given change anything.
type specFlags struct {
	flags *pflag.FlagSet

	displayName, rpm, tpm, concurrent, daily, monthly, enforcement, state string
	capabilities, models                                                  []string
}

// add adds the flags. editing: "none" takes a field away.
func (s *specFlags) add(cmd *cobra.Command, editing bool) {
	s.flags = cmd.Flags()
	hint := ""
	if editing {
		hint = `; "none" unsets it`
	}
	s.flags.StringVar(&s.displayName, "display-name", "", "name for people, 2 to 50 characters")
	s.flags.StringVar(&s.rpm, "rpm", "", "requests in any 60 seconds"+hint)
	s.flags.StringVar(&s.tpm, "tpm", "", "tokens in any 60 seconds, input and output together"+hint)
	s.flags.StringVar(&s.concurrent, "concurrent", "", "requests under way at one time"+hint)
	s.flags.StringVar(&s.daily, "daily-budget", "", "most that a day may cost, such as 12.50"+hint)
	s.flags.StringVar(&s.monthly, "monthly-budget", "", "most that a month may cost, such as 500"+hint)
	s.flags.StringVar(&s.enforcement, "enforcement", "", "of the budgets: UntilReached, or Strict, which is never passed")
	s.flags.StringSliceVar(&s.capabilities, "capability", nil, "what it may be used for, repeatable or with commas: "+capabilityNames())
	s.flags.StringSliceVar(&s.models, "model", nil, `model that may be called, repeatable or with commas; "all" for every one`)
}

// addState adds --state, where the object has none yet.
func (s *specFlags) addState(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.state, "state", "", "Enabled or Disabled")
}

func capabilityNames() string { return policy.AllCapabilities.String() }

// common are the fields of a spec that specFlags sets.
type common struct {
	displayName  *v1alpha1.DisplayName
	state        *v1alpha1.State
	capabilities *[]v1alpha1.Capability
	models       **v1alpha1.ModelScope
	limits       **v1alpha1.RateLimits
	budgets      **v1alpha1.Budgets
}

// apply sets the fields whose flags were given. bounds: the lists bound keys and may be unset, as an Application's.
func (s *specFlags) apply(c common, bounds bool) error {
	var errs []error
	given := func(name string, set func() error) {
		if s.flags.Changed(name) {
			if err := set(); err != nil {
				errs = append(errs, fmt.Errorf("--%s: %w", name, err))
			}
		}
	}
	limits := v1alpha1.RateLimits{}
	if *c.limits != nil {
		limits = **c.limits
	}
	budgets := v1alpha1.Budgets{}
	if *c.budgets != nil {
		budgets = **c.budgets
	}
	given("display-name", func() error {
		*c.displayName = v1alpha1.DisplayName(s.displayName)
		return checkDisplayName(s.displayName)
	})
	given("state", func() (err error) { *c.state, err = parseState(s.state); return err })
	given("rpm", func() (err error) { limits.RequestsPerMinute, err = parseLimit(s.rpm); return err })
	given("tpm", func() (err error) { limits.TokensPerMinute, err = parseLimit(s.tpm); return err })
	given("concurrent", func() (err error) { limits.ConcurrentRequests, err = parseLimit(s.concurrent); return err })
	given("daily-budget", func() (err error) { budgets.Daily, err = parseBudget(s.daily); return err })
	given("monthly-budget", func() (err error) { budgets.Monthly, err = parseBudget(s.monthly); return err })
	given("enforcement", func() (err error) {
		if budgets.Enforcement, err = parseEnforcement(s.enforcement); err == nil && budgets.Daily == nil && budgets.Monthly == nil {
			return errors.New("goes with a budget: set --daily-budget, --monthly-budget or both")
		}
		return err
	})
	given("capability", func() (err error) { *c.capabilities, err = parseCapabilities(s.capabilities, bounds); return err })
	given("model", func() (err error) { *c.models, err = parseModels(s.models, bounds); return err })
	*c.limits, *c.budgets = nil, nil
	if limits != (v1alpha1.RateLimits{}) {
		*c.limits = &limits
	}
	if budgets.Daily != nil || budgets.Monthly != nil {
		*c.budgets = &budgets
	}
	return errors.Join(errs...)
}

// applyToKey sets the fields of a key.
func (s *specFlags) applyToKey(spec *v1alpha1.APIKeySpec) error {
	models := &spec.Models
	err := s.apply(common{&spec.DisplayName, &spec.State, &spec.Capabilities, &models, &spec.RateLimits, &spec.Budgets}, false)
	if models != nil {
		spec.Models = *models
	}
	return err
}

// applyToApp sets the fields of an application.
func (s *specFlags) applyToApp(spec *v1alpha1.ApplicationSpec) error {
	return s.apply(common{&spec.DisplayName, &spec.State, &spec.Capabilities, &spec.Models, &spec.RateLimits, &spec.Budgets}, true)
}

func checkDisplayName(s string) error {
	if n := len([]rune(s)); n < 2 || n > 50 {
		return fmt.Errorf("%q has %d characters: write 2 to 50", s, n)
	}
	if strings.TrimSpace(s) != s {
		return fmt.Errorf("%q begins or ends with a space", s)
	}
	return nil
}

func parseState(s string) (v1alpha1.State, error) {
	for _, state := range []v1alpha1.State{v1alpha1.StateEnabled, v1alpha1.StateDisabled} {
		if strings.EqualFold(s, string(state)) {
			return state, nil
		}
	}
	return "", fmt.Errorf("%q is neither Enabled nor Disabled", s)
}

func parseEnforcement(s string) (v1alpha1.BudgetEnforcement, error) {
	for _, e := range []v1alpha1.BudgetEnforcement{v1alpha1.BudgetEnforcementUntilReached, v1alpha1.BudgetEnforcementStrict} {
		if strings.EqualFold(s, string(e)) {
			return e, nil
		}
	}
	return "", fmt.Errorf("%q is neither UntilReached nor Strict", s)
}

// parseLimit reads a count, in which underscores may stand, with k and m behind it for thousands and millions.
func parseLimit(s string) (*int64, error) {
	if s == unset {
		return nil, nil
	}
	digits, factor := strings.ReplaceAll(strings.ToLower(s), "_", ""), int64(1)
	if rest, ok := strings.CutSuffix(digits, "k"); ok {
		digits, factor = rest, 1_000
	} else if rest, ok := strings.CutSuffix(digits, "m"); ok {
		digits, factor = rest, 1_000_000
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > 1_000_000_000_000/factor {
		return nil, fmt.Errorf("%q is not a limit: write a number such as 600, 200k or 2m, or none", s)
	}
	return new(n * factor), nil
}

func parseBudget(s string) (*v1alpha1.Money, error) {
	if s == unset {
		return nil, nil
	}
	if _, err := money.Parse(s); err != nil {
		return nil, fmt.Errorf("%w, or none", err)
	}
	return new(v1alpha1.Money(s)), nil
}

func parseCapabilities(list []string, mayUnset bool) ([]v1alpha1.Capability, error) {
	if len(list) == 1 && list[0] == unset && mayUnset {
		return nil, nil
	}
	var out []v1alpha1.Capability
	for _, s := range list {
		if strings.EqualFold(s, "all") {
			for _, c := range policy.AllCapabilities.List() {
				out = append(out, v1alpha1.Capability(c.String()))
			}
			continue
		}
		at := slices.IndexFunc(policy.AllCapabilities.List(), func(c policy.Capability) bool { return strings.EqualFold(c.String(), s) })
		if at < 0 {
			return nil, fmt.Errorf("%q is not a capability: write some of %s, or all", s, capabilityNames())
		}
		out = append(out, v1alpha1.Capability(policy.AllCapabilities.List()[at].String()))
	}
	if out = slices.Compact(out); len(out) == 0 {
		return nil, fmt.Errorf("write at least one of %s", capabilityNames())
	}
	return dedupe(out), nil
}

func parseModels(list []string, mayUnset bool) (*v1alpha1.ModelScope, error) {
	switch {
	case len(list) == 1 && list[0] == unset && mayUnset:
		return nil, nil
	case len(list) == 1 && strings.EqualFold(list[0], "all"):
		return &v1alpha1.ModelScope{Access: v1alpha1.ModelAccessAll}, nil
	case len(list) == 1 && list[0] == unset:
		return nil, errors.New("a key says which models it may call: write their names, or all")
	case len(list) == 0 || slices.Contains(list, ""):
		return nil, errors.New("write the models' names, or all")
	case slices.ContainsFunc(list, func(s string) bool { return strings.EqualFold(s, "all") || s == unset }):
		return nil, errors.New("all and none stand alone, without names beside them")
	}
	scope := &v1alpha1.ModelScope{Access: v1alpha1.ModelAccessList}
	for _, s := range list {
		scope.Names = append(scope.Names, v1alpha1.ModelName(s))
	}
	scope.Names = dedupe(scope.Names)
	return scope, nil
}

// dedupe keeps the first of each.
func dedupe[S comparable](list []S) []S {
	var out []S
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// parseExpiry reads a moment in RFC 3339, a day such as 2026-12-31 (its end, in UTC), or a time from now, such as 12h, 30d or 2w.
func parseExpiry(s string, now time.Time) (*metav1.Time, error) {
	if s == unset {
		return nil, nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return new(metav1.NewTime(t)), nil
	}
	if t, err := time.Parse(time.DateOnly, s); err == nil {
		return new(metav1.NewTime(t.AddDate(0, 0, 1))), nil
	}
	for unit, days := range map[string]int{"d": 1, "w": 7} {
		if digits, ok := strings.CutSuffix(s, unit); ok {
			if n, err := strconv.Atoi(digits); err == nil && n > 0 && n < 100_000 {
				return new(metav1.NewTime(now.UTC().AddDate(0, 0, n*days).Truncate(time.Second))), nil
			}
		}
	}
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		return new(metav1.NewTime(now.UTC().Add(d).Truncate(time.Second))), nil
	}
	return nil, fmt.Errorf("%q is no moment: write one such as 2026-12-31T23:59:59Z, a day such as 2026-12-31, or a time from now such as 12h, 30d or 2w", s)
}
