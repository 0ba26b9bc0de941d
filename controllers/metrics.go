package controllers

import (
	"context"
	"errors"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/certs"
)

// inventoryTimeout bounds the wait for a cache that is being filled.
const inventoryTimeout = 5 * time.Second

// stateOther stands for the reasons that are not among those listed below, so that no one who can write a status can make labels at will.
const stateOther = "Other"

// keyStates are the reasons that the condition Usable of an APIKey can have; applicationStates are those of an Application.
func keyStates() []string {
	return []string{
		v1alpha1.ReasonActive, v1alpha1.ReasonPending, v1alpha1.ReasonDisabled, v1alpha1.ReasonExpired,
		v1alpha1.ReasonApplicationDisabled, v1alpha1.ReasonApplicationNotFound, v1alpha1.ReasonBudgetExhausted,
		v1alpha1.ReasonMaxKeysReached, v1alpha1.ReasonDuplicateKey, v1alpha1.ReasonSecretConflict, v1alpha1.ReasonSecretLost,
		v1alpha1.ReasonInvalid, stateOther,
	}
}

func applicationStates() []string {
	return []string{v1alpha1.ReasonActive, v1alpha1.ReasonPending, v1alpha1.ReasonDisabled, v1alpha1.ReasonBudgetExhausted, stateOther}
}

func readyStates() []string {
	return []string{string(metav1.ConditionTrue), string(metav1.ConditionFalse), string(metav1.ConditionUnknown)}
}

// Inventory shows how many objects there are, in which state, and when the certificates of the xDS port end: at each scrape, from the
// cache, by every replica alike. It implements prometheus.Collector. What cannot be found out is left out of the scrape.
type Inventory struct {
	reader       client.Reader
	certificates certs.Source
	log          logr.Logger

	keys, applications, models, providers, notEnforced, expiry *prometheus.Desc
}

// NewInventory makes one. reader is a cache: each scrape lists all objects, and does not change them.
func NewInventory(reader client.Reader, certificates certs.Source, log logr.Logger) *Inventory {
	return &Inventory{
		reader: reader, certificates: certificates, log: log,
		keys: prometheus.NewDesc("latchkey_api_keys",
			"APIKeys, by what their callers meet: the reason of the condition Usable.", []string{"state"}, nil),
		applications: prometheus.NewDesc("latchkey_applications",
			"Applications, by what the callers of their keys meet: the reason of the condition Usable.", []string{"state"}, nil),
		models: prometheus.NewDesc("latchkey_models",
			"Models, by their condition Ready.", []string{"ready"}, nil),
		providers: prometheus.NewDesc("latchkey_providers",
			"Providers, by their condition Ready.", []string{"ready"}, nil),
		notEnforced: prometheus.NewDesc("latchkey_api_keys_not_enforced",
			"APIKeys whose latest change not every enforcer has taken over.", nil, nil),
		expiry: prometheus.NewDesc("latchkey_certificate_expiry_timestamp_seconds",
			"When the xDS port's own certificate and its authority's end, in seconds since 1970.", []string{"certificate"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (i *Inventory) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{i.keys, i.applications, i.models, i.providers, i.notEnforced, i.expiry} {
		descs <- d
	}
}

// Collect implements prometheus.Collector.
func (i *Inventory) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), inventoryTimeout)
	defer cancel()
	var keys v1alpha1.APIKeyList
	if i.list(ctx, &keys) {
		states, notEnforced := newTally(keyStates()), 0
		for k := range keys.Items {
			conditions := keys.Items[k].Status.Conditions
			states.add(stateOf(conditions), stateOther)
			if !meta.IsStatusConditionTrue(conditions, v1alpha1.ConditionEnforced) {
				notEnforced++
			}
		}
		states.collect(out, i.keys)
		out <- prometheus.MustNewConstMetric(i.notEnforced, prometheus.GaugeValue, float64(notEnforced))
	}
	var applications v1alpha1.ApplicationList
	if i.list(ctx, &applications) {
		states := newTally(applicationStates())
		for a := range applications.Items {
			states.add(stateOf(applications.Items[a].Status.Conditions), stateOther)
		}
		states.collect(out, i.applications)
	}
	var models v1alpha1.ModelList
	if i.list(ctx, &models) {
		states := newTally(readyStates())
		for m := range models.Items {
			states.add(readinessOf(models.Items[m].Status.Conditions), string(metav1.ConditionUnknown))
		}
		states.collect(out, i.models)
	}
	var providers v1alpha1.ProviderList
	if i.list(ctx, &providers) {
		states := newTally(readyStates())
		for p := range providers.Items {
			states.add(readinessOf(providers.Items[p].Status.Conditions), string(metav1.ConditionUnknown))
		}
		states.collect(out, i.providers)
	}
	i.collectExpiry(out)
}

func (i *Inventory) collectExpiry(out chan<- prometheus.Metric) {
	bundle, err := i.certificates()
	if err != nil {
		i.complain(err, "could not read the certificates of the xDS port for the metrics")
		return
	}
	authority, server, err := certs.Expiry(bundle)
	if err != nil {
		i.complain(err, "could not tell for the metrics when the certificates of the xDS port end")
		return
	}
	out <- prometheus.MustNewConstMetric(i.expiry, prometheus.GaugeValue, float64(authority.Unix()), "ca")
	out <- prometheus.MustNewConstMetric(i.expiry, prometheus.GaugeValue, float64(server.Unix()), "server")
}

// list reads all objects of a kind. They are the cache's own: nothing in them may be changed.
func (i *Inventory) list(ctx context.Context, into client.ObjectList) bool {
	if err := i.reader.List(ctx, into, client.UnsafeDisableDeepCopy); err != nil {
		i.complain(err, "could not count objects for the metrics")
		return false
	}
	return true
}

// complain logs, unless the manager has only just begun.
func (i *Inventory) complain(err error, message string) {
	if _, early := errors.AsType[*cache.ErrCacheNotStarted](err); early {
		return
	}
	i.log.Error(err, message)
}

// stateOf is the reason of the condition Usable. An object that no controller has looked at yet is pending.
func stateOf(conditions []metav1.Condition) string {
	if c := meta.FindStatusCondition(conditions, v1alpha1.ConditionUsable); c != nil {
		return c.Reason
	}
	return v1alpha1.ReasonPending
}

func readinessOf(conditions []metav1.Condition) string {
	if c := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady); c != nil {
		return string(c.Status)
	}
	return string(metav1.ConditionUnknown)
}

// tally counts by label values that are known beforehand, so that each is shown, and be it with 0.
type tally struct {
	values []string
	counts map[string]int
}

func newTally(values []string) *tally {
	counts := make(map[string]int, len(values))
	for _, v := range values {
		counts[v] = 0
	}
	return &tally{values: values, counts: counts}
}

// add counts one more of a value, or of otherwise where the value is not a known one.
func (t *tally) add(value, otherwise string) {
	if _, known := t.counts[value]; !known {
		value = otherwise
	}
	t.counts[value]++
}

func (t *tally) collect(out chan<- prometheus.Metric, desc *prometheus.Desc) {
	for _, v := range t.values {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(t.counts[v]), v)
	}
}
