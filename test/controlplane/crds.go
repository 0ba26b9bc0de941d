package controlplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	"sigs.k8s.io/yaml"
)

// installCRDs applies config/crd/bases and waits until every kind is served.
func (c *ControlPlane) installCRDs(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	root, err := Root()
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(root, "config", "crd", "bases", "*.yaml"))
	if err != nil || len(files) == 0 {
		return errors.Join(errors.New("install CRDs: no file in config/crd/bases"), err)
	}
	client, err := clientset.NewForConfig(c.config)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	crds := client.ApiextensionsV1().CustomResourceDefinitions()
	var installed []*apiextensionsv1.CustomResourceDefinition
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("install CRDs: %w", err)
		}
		var crd apiextensionsv1.CustomResourceDefinition
		if err := yaml.UnmarshalStrict(content, &crd); err != nil {
			return fmt.Errorf("read %s: %w", filepath.Base(file), err)
		}
		asJSON, err := yaml.YAMLToJSON(content)
		if err != nil {
			return fmt.Errorf("read %s: %w", filepath.Base(file), err)
		}
		if _, err := crds.Patch(ctx, crd.Name, types.ApplyPatchType, asJSON, metav1.PatchOptions{FieldManager: "latchkey-test", Force: new(true)}); err != nil {
			return fmt.Errorf("apply %s: %w", filepath.Base(file), err)
		}
		installed = append(installed, &crd)
	}
	for _, crd := range installed {
		if err := c.awaitServed(ctx, crd); err != nil {
			return err
		}
	}
	c.say(fmt.Sprintf("installed %d CRDs", len(installed)))
	return nil
}

// awaitServed waits until discovery lists the kind, which is when clients can use it.
func (c *ControlPlane) awaitServed(ctx context.Context, crd *apiextensionsv1.CustomResourceDefinition) error {
	client, err := discovery.NewDiscoveryClientForConfig(c.config)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	for _, version := range crd.Spec.Versions {
		groupVersion := crd.Spec.Group + "/" + version.Name
		err := wait.PollUntilContextCancel(ctx, 50*time.Millisecond, true, func(context.Context) (bool, error) {
			list, err := client.ServerResourcesForGroupVersion(groupVersion)
			if err != nil {
				return false, nil //nolint:nilerr // not served yet
			}
			for _, resource := range list.APIResources {
				if resource.Name == crd.Spec.Names.Plural {
					return true, nil
				}
			}
			return false, nil
		})
		if err != nil {
			return fmt.Errorf("wait until %s of %s is served: %w", crd.Spec.Names.Plural, groupVersion, err)
		}
	}
	return nil
}
