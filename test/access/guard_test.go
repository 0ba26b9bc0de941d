package access

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

const (
	annotationConfirm = "latchkey.dev/confirm-deletion"
	labelGuard        = "latchkey.dev/deletion-guard"

	namespaceController = "system:serviceaccount:kube-system:namespace-controller"
	garbageCollector    = "system:serviceaccount:kube-system:generic-garbage-collector"
)

// guarded makes a namespace with these labels in which the guard is at work, or has been found to leave the namespace alone. The API
// server reads its policies and the labels of namespaces by a watch, so that both take a moment to be heeded. Once on, the guard
// stays on for the tests that come after.
func guarded(t *testing.T, labels map[string]string) (namespace string) {
	t.Helper()
	server.guard.Do(func() {
		if out, err := shell(t.Context(), "kubectl apply --server-side -k config/guard"); err != nil {
			t.Fatalf("kubectl apply -k config/guard: %v\n%s", err, out)
		}
	})
	namespace = newNamespace(t, nil)
	app := &v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "canary"}, Spec: v1alpha1.ApplicationSpec{DisplayName: "Canary"}}
	mustCreate(t, newKey(namespace, "canary", "Canary"), app)
	countKeys(t, app, 1)
	for _, canary := range []client.Object{newKey(namespace, "canary", ""), app} {
		await(t, "the guard is up", func() error {
			switch err := server.admin.Delete(t.Context(), canary, client.DryRunAll); {
			case err == nil:
				return errors.New("a deletion goes unasked")
			case !apierrors.IsForbidden(err):
				return err
			}
			return nil
		})
	}
	if labels == nil {
		return namespace
	}
	other := newNamespace(t, labels)
	if labels[labelGuard] == "disabled" {
		// The label has been seen once a dry run goes through.
		mustCreate(t, newKey(other, "canary", "Canary"))
		await(t, "the exemption is up", func() error { return server.admin.Delete(t.Context(), newKey(other, "canary", ""), client.DryRunAll) })
	}
	return other
}

// countKeys sets what the manager writes.
func countKeys(t *testing.T, app *v1alpha1.Application, keys int32) {
	t.Helper()
	app.Status.Keys = &keys
	if err := server.admin.Status().Update(t.Context(), app); err != nil {
		t.Fatal(err)
	}
}

func TestGuardOfKeys(t *testing.T) {
	const name = "Shop backend"
	for sentence, tc := range map[string]struct {
		displayName string // unset: Shop backend
		annotations map[string]string
		labels      map[string]string // of the namespace
		user        string            // unset: the administrator
		groups      []string
		finalizers  []string
		before      func(t *testing.T, key *v1alpha1.APIKey)
		options     []client.DeleteOption
		says        string // unset: the deletion passes
	}{
		"without the annotation it is refused":                  {says: "cannot be brought back"},
		"with the display name it passes":                       {annotations: map[string]string{annotationConfirm: name}},
		"with another name it is refused":                       {annotations: map[string]string{annotationConfirm: "Shop frontend"}, says: "is not the key's display name"},
		"with the object's name it is refused":                  {annotations: map[string]string{annotationConfirm: "backend"}, says: "is not the key's display name"},
		"with the display name in other case it is refused":     {annotations: map[string]string{annotationConfirm: "shop backend"}, says: "is not the key's display name"},
		"with true it is refused":                               {annotations: map[string]string{annotationConfirm: "true"}, says: "is not the key's display name"},
		"with an empty annotation it is refused":                {annotations: map[string]string{annotationConfirm: ""}, says: "cannot be brought back"},
		"with other annotations it is refused":                  {annotations: map[string]string{"example.com/team": name}, says: "cannot be brought back"},
		"a dry run is asked as well":                            {options: []client.DeleteOption{client.DryRunAll}, says: "cannot be brought back"},
		"a dry run of what is confirmed passes":                 {annotations: map[string]string{annotationConfirm: name}, options: []client.DeleteOption{client.DryRunAll}},
		"an orphaning deletion is asked as well":                {options: []client.DeleteOption{client.PropagationPolicy(metav1.DeletePropagationOrphan)}, says: "cannot be brought back"},
		"a foreground deletion is asked as well":                {options: []client.DeleteOption{client.PropagationPolicy(metav1.DeletePropagationForeground)}, says: "cannot be brought back"},
		"a namespace can be exempt":                             {labels: map[string]string{labelGuard: "disabled"}},
		"another value of the label exempts nothing":            {labels: map[string]string{labelGuard: "off"}, says: "cannot be brought back"},
		"the namespace controller is not asked":                 {user: namespaceController, groups: []string{"system:serviceaccounts"}},
		"the garbage collector is not asked":                    {user: garbageCollector, groups: []string{"system:serviceaccounts"}},
		"controllers that share one account are not asked":      {user: "system:kube-controller-manager", groups: []string{"system:masters"}},
		"an account of a like name is asked":                    {user: "system:serviceaccount:default:generic-garbage-collector", groups: []string{"system:masters"}, says: "cannot be brought back"},
		"Flux is asked":                                         {user: "system:serviceaccount:flux-system:kustomize-controller", groups: []string{"system:masters"}, says: "cannot be brought back"},
		"Argo CD is asked":                                      {user: "system:serviceaccount:argocd:argocd-application-controller", groups: []string{"system:masters"}, says: "cannot be brought back"},
		"Argo CD is asked, and passes with the annotation":      {user: "system:serviceaccount:argocd:argocd-application-controller", groups: []string{"system:masters"}, annotations: map[string]string{annotationConfirm: name}},
		"a Chinese display name is compared as it is":           {displayName: "商店后端 🔑", annotations: map[string]string{annotationConfirm: "商店后端 🔑"}},
		"letters that look alike are not the same":              {displayName: "Caf\u00e9", annotations: map[string]string{annotationConfirm: "Cafe\u0301"}, says: "is not the key's display name"},
		"quotation marks in the display name do no harm":        {displayName: `it's "$HOME" \ the -end-`, says: `latchkey.dev/confirm-deletion='it'\''s "$HOME" \ the -end-' && `},
		"the message gives the command":                         {says: "kubectl annotate --overwrite apikeys.latchkey.dev backend -n {namespace} latchkey.dev/confirm-deletion='Shop backend' && kubectl delete apikeys.latchkey.dev backend -n {namespace} "},
		"the message gives the plugin's command":                {says: "kubectl latchkey delete key backend -n {namespace}"},
		"a changed display name has to be confirmed once more":  {annotations: map[string]string{annotationConfirm: name}, before: rename, says: "is not the key's display name"},
		"a key that is being deleted already may be once again": {annotations: map[string]string{annotationConfirm: name}, finalizers: []string{v1alpha1.FinalizerAPIKey}, before: deleteAndForget},
	} {
		t.Run(sentence, func(t *testing.T) {
			namespace := guarded(t, tc.labels)
			if tc.displayName == "" {
				tc.displayName = name
			}
			key := newKey(namespace, "backend", tc.displayName)
			key.Annotations, key.Finalizers = tc.annotations, tc.finalizers
			mustCreate(t, key)
			if tc.before != nil {
				tc.before(t, key)
			}
			c := server.admin
			if tc.user != "" {
				c = clientAs(t, tc.user, tc.groups...)
			}
			err := c.Delete(t.Context(), key, tc.options...)
			if tc.says == "" {
				if err != nil {
					t.Fatalf("the deletion is refused: %v", err)
				}
				return
			}
			if want := strings.ReplaceAll(tc.says, "{namespace}", namespace); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), want) {
				t.Fatalf("got %v\nwant a refusal that says: %s", err, want)
			}
			if err := server.admin.Get(t.Context(), client.ObjectKeyFromObject(key), key); err != nil || !key.DeletionTimestamp.IsZero() {
				t.Errorf("after the refusal the key is deleted at %v, %v", key.DeletionTimestamp, err)
			}
		})
	}
}

func rename(t *testing.T, key *v1alpha1.APIKey) {
	t.Helper()
	key.Spec.DisplayName = "Shop back office"
	if err := server.admin.Update(t.Context(), key); err != nil {
		t.Fatal(err)
	}
}

// deleteAndForget deletes a key that finalizers hold back, and takes its annotation away.
func deleteAndForget(t *testing.T, key *v1alpha1.APIKey) {
	t.Helper()
	if err := server.admin.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	if err := server.admin.Get(t.Context(), client.ObjectKeyFromObject(key), key); err != nil {
		t.Fatal(err)
	}
	if key.DeletionTimestamp.IsZero() {
		t.Fatal("the key is not being deleted")
	}
	key.Annotations = nil
	if err := server.admin.Update(t.Context(), key); err != nil {
		t.Fatal(err)
	}
}

// TestGuardCommand runs what the refusal says, as somebody would who copies it.
func TestGuardCommand(t *testing.T) {
	for sentence, displayName := range map[string]string{
		"a plain name":                      "Shop backend",
		"a name of other letters":           "商店后端 🔑",
		"a name that a shell would stumble": `it's "$HOME" \ a=b & $(exit 3) -`,
	} {
		t.Run(sentence, func(t *testing.T) {
			namespace := guarded(t, nil)
			key := newKey(namespace, "backend", displayName)
			key.Annotations = map[string]string{annotationConfirm: "wrong"}
			mustCreate(t, key)
			out, err := shell(t.Context(), "kubectl delete lkkey backend -n "+namespace)
			if err == nil {
				t.Fatalf("kubectl deletes without asking: %s", out)
			}
			_, command, found := strings.Cut(out, "To delete it all the same: ")
			command, _, ended := strings.Cut(command, " (or: ")
			if !found || !ended {
				t.Fatalf("the refusal names no command: %s", out)
			}
			if out, err := shell(t.Context(), command); err != nil {
				t.Fatalf("%s: %v\n%s", command, err, out)
			}
			if err := server.admin.Get(t.Context(), client.ObjectKeyFromObject(key), key); !apierrors.IsNotFound(err) {
				t.Errorf("the key is still there: %v", err)
			}
		})
	}
}

func TestGuardOfCollections(t *testing.T) {
	inNamespace := func(namespace string) client.DeleteAllOfOption { return client.InNamespace(namespace) }
	t.Run("each object of a collection is asked about", func(t *testing.T) {
		namespace := guarded(t, nil)
		confirmed, not := newKey(namespace, "confirmed", "Shop backend"), newKey(namespace, "not", "Shop frontend")
		confirmed.Annotations = map[string]string{annotationConfirm: "Shop backend"}
		confirmed.Labels, not.Labels = map[string]string{"of": "both"}, map[string]string{"of": "both"}
		mustCreate(t, confirmed, not)
		err := server.admin.DeleteAllOf(t.Context(), &v1alpha1.APIKey{}, inNamespace(namespace), client.MatchingLabels{"of": "both"})
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "confirm-deletion='Shop frontend'") {
			t.Fatalf("got %v, want a refusal that speaks of the one that is not confirmed", err)
		}
		if err := server.admin.Get(t.Context(), client.ObjectKeyFromObject(not), not); err != nil {
			t.Errorf("the key that is not confirmed: %v", err)
		}
	})
	t.Run("a collection in which all are confirmed passes", func(t *testing.T) {
		namespace := guarded(t, nil)
		var names []string
		for i := range 3 {
			key := newKey(namespace, fmt.Sprintf("key-%d", i), fmt.Sprintf("Key %d", i))
			key.Labels, key.Annotations = map[string]string{"of": "all"}, map[string]string{annotationConfirm: string(key.Spec.DisplayName)}
			mustCreate(t, key)
		}
		if err := server.admin.DeleteAllOf(t.Context(), &v1alpha1.APIKey{}, inNamespace(namespace), client.MatchingLabels{"of": "all"}); err != nil {
			t.Fatal(err)
		}
		var left v1alpha1.APIKeyList
		if err := server.admin.List(t.Context(), &left, client.InNamespace(namespace)); err != nil {
			t.Fatal(err)
		}
		for _, key := range left.Items {
			names = append(names, key.Name)
		}
		if diff := cmp.Diff([]string{"canary"}, names); diff != "" {
			t.Errorf("keys that are left (-want +got):\n%s", diff)
		}
	})
	t.Run("the namespace controller empties a namespace", func(t *testing.T) {
		namespace := guarded(t, nil)
		mustCreate(t, newKey(namespace, "backend", "Shop backend"))
		c := clientAs(t, namespaceController, "system:serviceaccounts")
		if err := c.DeleteAllOf(t.Context(), &v1alpha1.APIKey{}, inNamespace(namespace)); err != nil {
			t.Error(err)
		}
		if err := c.DeleteAllOf(t.Context(), &v1alpha1.Application{}, inNamespace(namespace)); err != nil {
			t.Error(err)
		}
	})
}

// TestGuardOfTerminatingNamespaces: in a namespace that goes, nobody is asked, whichever account empties it.
func TestGuardOfTerminatingNamespaces(t *testing.T) {
	namespace := guarded(t, nil)
	mustCreate(t, newKey(namespace, "backend", "Shop backend"))
	c := clientAs(t, "system:serviceaccount:platform:namespace-cleaner", "system:masters")
	if err := c.Delete(t.Context(), newKey(namespace, "backend", "")); !apierrors.IsForbidden(err) {
		t.Fatalf("before: %v, want a refusal", err)
	}
	if err := server.admin.Delete(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}); err != nil {
		t.Fatal(err)
	}
	await(t, "the key can be deleted", func() error { return c.Delete(t.Context(), newKey(namespace, "backend", "")) })
	await(t, "the application can be deleted", func() error {
		return c.Delete(t.Context(), &v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "canary"}})
	})
}

// TestGuardLeavesTheManagerAlone: to finish a deletion is an update, which is not asked about.
func TestGuardLeavesTheManagerAlone(t *testing.T) {
	namespace := guarded(t, nil)
	config, _, err := server.ServiceAccountConfig(t.Context(), installationNamespace, managerAccount)
	if err != nil {
		t.Fatal(err)
	}
	manager, err := clientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(namespace, "backend", "Shop backend")
	key.Annotations = map[string]string{annotationConfirm: "Shop backend"}
	key.Finalizers = []string{v1alpha1.FinalizerAPIKey}
	mustCreate(t, key)
	deleteAndForget(t, key)
	without := key.DeepCopy()
	without.Finalizers = nil
	if err := manager.Patch(t.Context(), without, client.MergeFrom(key)); err != nil {
		t.Fatalf("the manager removes the finalizer: %v", err)
	}
	if err := server.admin.Get(t.Context(), client.ObjectKeyFromObject(key), key); !apierrors.IsNotFound(err) {
		t.Errorf("the key is still there: %v", err)
	}
}

func TestGuardOfApplications(t *testing.T) {
	for sentence, tc := range map[string]struct {
		keys        int32 // below 0: not counted yet
		annotations map[string]string
		labels      map[string]string
		user        string
		says        string // unset: the deletion passes
	}{
		"one with keys is refused":               {keys: 3, says: "the Application has 3 keys"},
		"one with keys passes once confirmed":    {keys: 3, annotations: map[string]string{annotationConfirm: "Online shop"}},
		"one with another's name is refused":     {keys: 1, annotations: map[string]string{annotationConfirm: "shop"}, says: "is not the application's display name"},
		"one without keys passes":                {keys: 0},
		"one that nobody has looked at passes":   {keys: -1},
		"one in an exempt namespace passes":      {keys: 3, labels: map[string]string{labelGuard: "disabled"}},
		"the garbage collector is not asked":     {keys: 3, user: garbageCollector},
		"the namespace controller is not asked":  {keys: 3, user: namespaceController},
		"the message gives the command to do it": {keys: 3, says: "kubectl annotate --overwrite applications.latchkey.dev shop -n {namespace} latchkey.dev/confirm-deletion='Online shop' && kubectl delete applications.latchkey.dev shop -n {namespace}"},
	} {
		t.Run(sentence, func(t *testing.T) {
			namespace := guarded(t, tc.labels)
			app := &v1alpha1.Application{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "shop", Annotations: tc.annotations},
				Spec:       v1alpha1.ApplicationSpec{DisplayName: "Online shop"},
			}
			mustCreate(t, app)
			if tc.keys >= 0 {
				countKeys(t, app, tc.keys)
			}
			c := server.admin
			if tc.user != "" {
				c = clientAs(t, tc.user, "system:serviceaccounts")
			}
			err := c.Delete(t.Context(), app)
			want := strings.ReplaceAll(tc.says, "{namespace}", namespace)
			if tc.says == "" && err != nil || tc.says != "" && (!apierrors.IsForbidden(err) || !strings.Contains(err.Error(), want)) {
				t.Errorf("got %v\nwant a refusal that says: %s (nothing: none)", err, want)
			}
		})
	}
}
