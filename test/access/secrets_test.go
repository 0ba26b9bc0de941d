package access

import (
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// TestWhatAUserReaches states the price of a role that can reveal: every Secret of the namespace, by its name.
func TestWhatAUserReaches(t *testing.T) {
	namespace, user, c := newUser(t)
	mustCreate(t, database(namespace))
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(database(namespace)), &corev1.Secret{}); err != nil {
		t.Errorf("%s reads a Secret whose name is known: %v; if that is refused now, docs/access.md has good news to tell", user, err)
	}
	for name, err := range map[string]error{
		"the list":     c.List(t.Context(), &corev1.SecretList{}, client.InNamespace(namespace)),
		"the deletion": c.Delete(t.Context(), database(namespace)),
		"the update":   c.Update(t.Context(), database(namespace)),
		"the creation": c.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "new"}}),
		"the creation by a patch": c.Patch(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "new"}},
			client.RawPatch(types.ApplyPatchType, []byte(`{"apiVersion":"v1","kind":"Secret","metadata":{"name":"new"}}`)), client.FieldOwner("ada")),
		"one of another namespace": c.Get(t.Context(), client.ObjectKey{Namespace: installationNamespace, Name: "sample"}, &corev1.Secret{}),
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s of Secrets: %v, want a refusal", name, err)
		}
	}
}

// TestAPatchReadsASecret says why there is no role that patches Secrets without reading them: it would read them.
func TestAPatchReadsASecret(t *testing.T) {
	namespace := newNamespace(t, nil)
	user := "patcher-of-" + namespace
	mustCreate(t, database(namespace),
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: user}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"patch"}}}})
	bind(t, user, user, namespace)
	awaitBindings(t, user, map[place]string{{"secrets", namespace}: ""})
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "database"}}
	if err := clientAs(t, user).Patch(t.Context(), secret, client.RawPatch(types.MergePatchType, []byte("{}"))); err != nil {
		t.Fatal(err)
	}
	if got := string(secret.Data["password"]); got != "x" {
		t.Errorf("the answer holds the password %q, want x; if it holds none now, latchkey-user could do without get", got)
	}
}

func TestGuardOfSecrets(t *testing.T) {
	if out, err := shell(t.Context(), "kubectl apply --server-side -k config/guard/secrets"); err != nil {
		t.Fatalf("kubectl apply -k config/guard/secrets: %v\n%s", err, out)
	}
	namespace, user, c := newUser(t)
	mustCreate(t, database(namespace))
	const overwrite = `{"data":{"password":"b3ZlcndyaXR0ZW4="}}`
	await(t, "the guard is up", func() error {
		switch err := c.Patch(t.Context(), database(namespace), client.RawPatch(types.MergePatchType, []byte(overwrite)), client.DryRunAll); {
		case err == nil:
			return errors.New("a Secret can be overwritten")
		case !apierrors.IsForbidden(err):
			return err
		}
		return nil
	})
	config, _, err := server.ServiceAccountConfig(t.Context(), installationNamespace, managerAccount)
	if err != nil {
		t.Fatal(err)
	}
	manager, err := clientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	editor := "editor-of-" + namespace
	bind(t, editor, "edit", namespace)
	awaitBindings(t, editor, map[place]string{{"secrets", namespace}: ""})
	byName := "by-name-of-" + namespace
	bind(t, byName, "latchkey-key-editor", namespace)

	const another, its = "is not one that Latchkey made", "change nothing else of its data"
	const marks = "change nothing else of its metadata"
	for sentence, tc := range map[string]struct {
		who    client.Client // unset: the user
		other  bool          // the Secret is not a key's
		patch  string
		kind   types.PatchType // unset: a merge patch
		refuse string          // unset: the patch passes
	}{
		"a user takes the key":                            {patch: `{"data":{"apiKey":null}}`},
		"a user takes the key by a JSON patch":            {patch: `[{"op":"remove","path":"/data/apiKey"}]`, kind: types.JSONPatchType},
		"a user marks it as taken":                        {patch: `{"metadata":{"annotations":{"latchkey.dev/revealed":"true"}}}`},
		"a user does both":                                {patch: `{"data":{"apiKey":null},"metadata":{"annotations":{"latchkey.dev/revealed":"true"}}}`},
		"a user does not change another Secret":           {other: true, patch: overwrite, refuse: another},
		"a user does not make another Secret a key's":     {other: true, patch: `{"metadata":{"labels":{"latchkey.dev/api-key":"backend"}}}`, refuse: another},
		"a user does not annotate another Secret":         {other: true, patch: `{"metadata":{"annotations":{"latchkey.dev/revealed":"true"}}}`, refuse: another},
		"a user does not put another key in":              {patch: `{"data":{"apiKey":"b3RoZXI="}}`, refuse: its},
		"a user does not put another key in as plaintext": {patch: `{"stringData":{"apiKey":"other"}}`, refuse: its},
		"a user does not change the hash":                 {patch: `{"data":{"keyHash":"b3RoZXI="}}`, refuse: its},
		"a user does not remove the hash":                 {patch: `{"data":{"keyHash":null}}`, refuse: its},
		"a user does not remove all data":                 {patch: `{"data":null}`, refuse: its},
		"a user does not add data":                        {patch: `{"data":{"more":"b3RoZXI="}}`, refuse: its},
		"a user does not relabel a key's Secret":          {patch: `{"metadata":{"labels":{"latchkey.dev/api-key":"other"}}}`, refuse: marks},
		"a user does not unlabel a key's Secret":          {patch: `{"metadata":{"labels":null}}`, refuse: marks},
		"a user does not annotate it otherwise":           {patch: `{"metadata":{"annotations":{"latchkey.dev/reveal-deadline":"2099-01-01T00:00:00Z"}}}`, refuse: marks},
		"a user does not remove its annotations":          {patch: `{"metadata":{"annotations":{"latchkey.dev/reveal-deadline":null}}}`, refuse: marks},
		"a user does not freeze it":                       {patch: `{"immutable":true}`, refuse: marks},
		"a user does not add finalizers":                  {patch: `{"metadata":{"finalizers":["example.com/stay"]}}`, refuse: marks},
		"a user does not give it an owner": {
			patch:  `{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"ConfigMap","name":"none","uid":"1"}]}}`,
			refuse: marks,
		},
		"who may update Secrets is not asked":                                {who: clientAs(t, editor), other: true, patch: overwrite},
		"the manager is not asked":                                           {who: manager, patch: `{"metadata":{"annotations":{"latchkey.dev/plaintext-removal":"Claimed"}},"data":{"apiKey":null}}`},
		"the administrator is not asked":                                     {who: server.admin, other: true, patch: overwrite},
		"a key editor with a role of their own by name takes the key":        {who: clientAs(t, byName), patch: `{"data":{"apiKey":null}}`},
		"a key editor with a role of their own by name changes nothing else": {who: clientAs(t, byName), patch: `{"data":{"keyHash":null}}`, refuse: its},
	} {
		t.Run(sentence, func(t *testing.T) {
			key := newKey(namespace, "test", "Test")
			key.Name, key.GenerateName = "", "test-"
			mustCreate(t, key)
			mint(t, key)
			secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: key.SecretName()}}
			if err := manager.Patch(t.Context(), secret, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"annotations":{"latchkey.dev/reveal-deadline":"2026-01-01T00:00:00Z"}}}`))); err != nil {
				t.Fatal(err)
			}
			if tc.other {
				secret = database(namespace)
				secret.Name, secret.GenerateName = "", "database-"
				mustCreate(t, secret)
			}
			allowByName(t, byName, secret)
			who, kind := tc.who, tc.kind
			if who == nil {
				who = c
			}
			if kind == "" {
				kind = types.MergePatchType
			}
			err := who.Patch(t.Context(), secret, client.RawPatch(kind, []byte(tc.patch)))
			if tc.refuse == "" && err != nil || tc.refuse != "" && (!apierrors.IsForbidden(err) || !strings.Contains(err.Error(), tc.refuse)) {
				t.Errorf("got %v\nwant a refusal that says: %s (nothing: none)", err, tc.refuse)
			}
		})
	}

	t.Run("a user reveals by the plugin", func(t *testing.T) {
		plugged := newKey(namespace, "plugged", "By the plugin")
		mustCreate(t, plugged)
		minted := mint(t, plugged)
		out, err := shell(t.Context(), "kubectl latchkey reveal plugged -n "+namespace+" --as "+user)
		if err != nil || strings.TrimSpace(out) != minted {
			t.Errorf("err %v, the key that was minted: %t", err, strings.TrimSpace(out) == minted)
		}
	})
}

// allowByName gives a user the two calls of a reveal on one Secret, and waits until that has come into force.
func allowByName(t *testing.T, user string, secret *corev1.Secret) {
	t.Helper()
	mustCreate(t,
		&rbacv1.Role{
			ObjectMeta: metav1.ObjectMeta{Namespace: secret.Namespace, Name: "reveal-" + secret.Name},
			Rules:      []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{secret.Name}, Verbs: []string{"get", "patch"}}},
		},
		&rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Namespace: secret.Namespace, Name: "reveal-" + secret.Name},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: user}},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "reveal-" + secret.Name},
		})
	c := clientAs(t, user)
	await(t, "the bindings take effect", func() error {
		return errors.Join(c.Get(t.Context(), client.ObjectKeyFromObject(secret), &corev1.Secret{}), c.List(t.Context(), &v1alpha1.APIKeyList{}, client.InNamespace(secret.Namespace)))
	})
}

// newUser makes a namespace and somebody who has the user's role in it.
func newUser(t *testing.T) (namespace, user string, c client.Client) {
	t.Helper()
	namespace = newNamespace(t, nil)
	user = "user-of-" + namespace
	bind(t, user, "latchkey-user", namespace)
	awaitBindings(t, user, map[place]string{{"secrets", namespace}: ""})
	return namespace, user, clientAs(t, user)
}

// database is a Secret that has nothing to do with Latchkey.
func database(namespace string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "database"}, Data: map[string][]byte{"password": []byte("x")}}
}
