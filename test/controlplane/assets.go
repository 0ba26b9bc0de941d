package controlplane

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Version is the Kubernetes version that hack/controlplane builds.
const Version = "1.37.2"

// assetsVariable names the folder with the programs, by the convention of Kubernetes' test tools.
const assetsVariable = "KUBEBUILDER_ASSETS"

// Root is the module's root: the nearest folder with a go.mod, from the working directory upwards.
func Root() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the module's root: %w", err)
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("find the module's root: no go.mod in %s or above it", start)
		}
	}
}

// findAssets settles which folder the programs are taken from: the one given, else the environment's, else the one that
// hack/controlplane.sh builds. It fails unless kube-apiserver and etcd are in it.
func findAssets(given string, getenv func(string) string) (string, error) {
	dir, origin := given, "Options.Assets"
	if dir == "" {
		dir, origin = getenv(assetsVariable), assetsVariable
	}
	if dir == "" {
		root, err := Root()
		if err != nil {
			return "", err
		}
		dir, origin = filepath.Join(root, "bin", "k8s", Version), "the default"
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("resolve %s: %w", dir, err)
	}
	var missing []string
	for _, name := range []string{"kube-apiserver", "etcd"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return "", fmt.Errorf("find the control plane's programs: no executable %s in %s (%s): `make test` and `make run` build them, or set %s to a folder that holds them",
			strings.Join(missing, " and "), dir, origin, assetsVariable)
	}
	return dir, nil
}

// Kubectl is the path of the kubectl that goes with the control plane: the one beside its programs, else the one that
// hack/controlplane.sh puts into bin.
func (c *ControlPlane) Kubectl() (string, error) {
	candidates := []string{filepath.Join(c.assets, "kubectl")}
	if root, err := Root(); err == nil {
		candidates = append(candidates, filepath.Join(root, "bin", "kubectl"))
	}
	for _, path := range candidates {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", errors.New("find kubectl: neither " + strings.Join(candidates, " nor ") + " exists: `make test` and `make run` build it")
}
