package cli

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/util/jsonpath"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// sortKey compares two objects by a column.
type sortKey func(a, b client.Object, cal calendar) int

// descending has the most first, as one wants to see spend and time.
func descending[V cmp.Ordered](of func(client.Object, calendar) V) sortKey {
	return func(a, b client.Object, cal calendar) int { return cmp.Compare(of(b, cal), of(a, cal)) }
}

func ascending[V cmp.Ordered](of func(client.Object, calendar) V) sortKey {
	return func(a, b client.Object, cal calendar) int { return cmp.Compare(of(a, cal), of(b, cal)) }
}

// commonSortKeys are those of every kind that spends.
func commonSortKeys(usage func(client.Object) *v1alpha1.Usage) map[string]sortKey {
	return map[string]sortKey{
		"name":      ascending(func(o client.Object, _ calendar) string { return o.GetName() }),
		"age":       descending(func(o client.Object, _ calendar) int64 { return o.GetCreationTimestamp().Unix() }),
		"spent":     descending(func(o client.Object, cal calendar) int64 { return int64(spend(cal.thisMonth(usage(o)).Spent)) }),
		"day":       descending(func(o client.Object, cal calendar) int64 { return int64(spend(cal.today(usage(o)).Spent)) }),
		"tokens":    descending(func(o client.Object, cal calendar) int64 { return cal.thisMonth(usage(o)).Tokens }),
		"last-used": descending(func(o client.Object, _ calendar) int64 { return unix(usedLast(usage(o))) }),
	}
}

func unix(t *metav1.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func keySortKeys() map[string]sortKey {
	keys := commonSortKeys(func(o client.Object) *v1alpha1.Usage { return o.(*v1alpha1.APIKey).Status.Usage })
	keys["app"] = ascending(func(o client.Object, _ calendar) string { return o.(*v1alpha1.APIKey).Spec.ApplicationRef.Name })
	keys["state"] = ascending(func(o client.Object, cal calendar) string { return keyState(o.(*v1alpha1.APIKey), cal).text })
	keys["expires"] = ascending(func(o client.Object, _ calendar) int64 {
		if e := o.(*v1alpha1.APIKey).Spec.ExpirationTime; e != nil {
			return e.Unix()
		}
		return time.Unix(1<<40, 0).Unix() // never: behind all others
	})
	return keys
}

func appSortKeys() map[string]sortKey {
	keys := commonSortKeys(func(o client.Object) *v1alpha1.Usage { return o.(*v1alpha1.Application).Status.Usage })
	keys["state"] = ascending(func(o client.Object, cal calendar) string { return appState(o.(*v1alpha1.Application), cal).text })
	keys["keys"] = descending(func(o client.Object, _ calendar) int32 {
		if n := o.(*v1alpha1.Application).Status.Keys; n != nil {
			return *n
		}
		return 0
	})
	return keys
}

func modelSortKeys() map[string]sortKey {
	return map[string]sortKey{
		"name":     ascending(func(o client.Object, _ calendar) string { return o.GetName() }),
		"model":    ascending(func(o client.Object, _ calendar) string { return o.(*v1alpha1.Model).CallName() }),
		"provider": ascending(func(o client.Object, _ calendar) string { return o.(*v1alpha1.Model).Spec.ProviderRef.Name }),
		"state":    ascending(func(o client.Object, _ calendar) string { return modelState(o.(*v1alpha1.Model)).text }),
		"age":      descending(func(o client.Object, _ calendar) int64 { return o.GetCreationTimestamp().Unix() }),
	}
}

// sorter orders a listing; the order of what compares equal, by namespace and name, is kept.
type sorter struct{ by sortKey }

func newSorter(flag string, keys map[string]sortKey) (sorter, error) {
	if flag == "" {
		return sorter{}, nil
	}
	if by, ok := keys[flag]; ok {
		return sorter{by}, nil
	}
	words := make([]string, 0, len(keys))
	for word := range keys {
		words = append(words, word)
	}
	slices.Sort(words)
	if !strings.ContainsAny(flag, ".{") {
		return sorter{}, fmt.Errorf("--sort-by: %q is no column: write one of %s, or a JSONPath such as .spec.displayName", flag, strings.Join(words, ", "))
	}
	path, err := jsonPath(flag)
	if err != nil {
		return sorter{}, fmt.Errorf("--sort-by: %w", err)
	}
	return sorter{func(a, b client.Object, _ calendar) int {
		return compareText(valueAt(path, a), valueAt(path, b))
	}}, nil
}

func (s sorter) sort(objects []client.Object, cal calendar) {
	slices.SortStableFunc(objects, func(a, b client.Object) int {
		if s.by != nil {
			if order := s.by(a, b, cal); order != 0 {
				return order
			}
		}
		return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
	})
}

// jsonPath reads a JSONPath, with and without braces, as kubectl's --sort-by does.
func jsonPath(expression string) (*jsonpath.JSONPath, error) {
	if !strings.HasPrefix(expression, "{") {
		expression = "{." + strings.TrimPrefix(expression, ".") + "}"
	}
	path := jsonpath.New("sort-by").AllowMissingKeys(true)
	if err := path.Parse(expression); err != nil {
		return nil, err
	}
	return path, nil
}

// valueAt is what stands at a path; empty: nothing does.
func valueAt(path *jsonpath.JSONPath, obj client.Object) string {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
	if err != nil {
		return ""
	}
	var b bytes.Buffer
	if err := path.Execute(&b, content); err != nil {
		return ""
	}
	return b.String()
}

// compareText compares two values as numbers where both are, else as text.
func compareText(a, b string) int {
	x, errA := strconv.ParseFloat(a, 64)
	y, errB := strconv.ParseFloat(b, 64)
	if errA == nil && errB == nil {
		return cmp.Compare(x, y)
	}
	return cmp.Compare(a, b)
}

// fromVersion has a watch begin where a list ended.
func fromVersion(version string) *metav1.ListOptions {
	return &metav1.ListOptions{ResourceVersion: version, AllowWatchBookmarks: true}
}

// watchError reads the error that a watch has reported.
func watchError(obj runtime.Object) error {
	return apierrors.FromObject(obj)
}

// modelName reads the name of a Model: NAME, or what "-o name" writes.
func modelName(arg string) string {
	for _, prefix := range []string{"model." + v1alpha1.GroupVersion.Group + "/", "model/", "lkmodel/"} {
		if name, ok := strings.CutPrefix(arg, prefix); ok {
			return name
		}
	}
	return arg
}
