package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"

	"time"

	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/selection"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/controllers"
	"github.com/latchkey-dev/latchkey/internal/certs"
	"github.com/latchkey-dev/latchkey/internal/envoyconf"
	"github.com/latchkey-dev/latchkey/internal/keyset"
	"github.com/latchkey-dev/latchkey/internal/policy"
	"github.com/latchkey-dev/latchkey/internal/usage"
	"github.com/latchkey-dev/latchkey/internal/xds"
)

// +kubebuilder:rbac:groups=coordination.k8s.io,resources=leases,verbs=get;list;watch;create;update;patch;delete,namespace=latchkey-system

const shutdownGrace = 20 * time.Second

// run brings the manager up and serves until the context ends. Its parts, in the order in which data passes them:
//
//	informers → reconcilers (leader) → Secrets and status
//	informers → publisher (every replica) → key set, Envoy's configuration → xDS port → followers → Enforced
//	enforcers → xDS port → usage writer (every replica) → status.usage, events
func run(ctx context.Context, cfg config, log *slog.Logger) error {
	logger := logr.FromSlogHandler(log.Handler())
	ctrl.SetLogger(logger)
	klog.SetLogger(logger.WithName("client-go"))
	if cfg.debugAddress != "" && !onLoopback(cfg.debugAddress) {
		log.Warn("serving debug pages to other machines, without access control: give --debug-address a loopback address",
			slog.String("address", cfg.debugAddress))
	}
	mgr, err := newManager(cfg, logger)
	if err != nil {
		return err
	}
	if err := controllers.SetupIndexes(ctx, mgr.GetFieldIndexer()); err != nil {
		return err
	}
	realClock := clock.RealClock{}

	certificates, err := serverCertificates(ctx, cfg, mgr, realClock, logger)
	if err != nil {
		return err
	}
	if err := metrics.Registry.Register(controllers.NewInventory(mgr.GetClient(), certificates, logger.WithName("inventory"))); err != nil {
		return fmt.Errorf("register the metrics of the objects: %w", err)
	}
	keySet := keyset.NewCache(keyset.SystemClock{})
	snapshots := cachev3.NewSnapshotCache(true, xds.EnvoyGroup{}, nil)
	writer := &controllers.UsageWriter{
		Client: mgr.GetClient(), Recorder: mgr.GetEventRecorder("latchkey-usage"), Clock: realClock, Log: logger.WithName("usage"),
		Metrics: metrics.Registry, WritesPerSecond: cfg.usageWrites,
	}
	if err := writer.Init(); err != nil {
		return err
	}
	receiver, err := usage.NewReceiver(writer, metrics.Registry)
	if err != nil {
		return err
	}
	server, err := xds.New(xds.Config{
		TLS: certs.Server(certificates), KeySet: keySet, Envoy: snapshots, Log: logger.WithName("xds"), Metrics: metrics.Registry,
		Services: []func(grpc.ServiceRegistrar){receiver.Register},
	})
	if err != nil {
		return err
	}
	followers := &controllers.Followers{
		Tracker: server.Tracker(), Client: mgr.GetClient(), Cache: mgr.GetCache(), Namespace: cfg.namespace, Identity: cfg.identity,
		Leading: mgr.Elected(), Ledgers: receiver.Ledgers, Clock: realClock, Log: logger.WithName("followers"),
	}
	followers.Init()
	publisher := &controllers.Publisher{
		Cache: mgr.GetCache(), KeySet: keySet, Flushed: followers.Flushed, Namespace: cfg.namespace, Clock: realClock, Log: logger.WithName("publisher"),
		Envoy: func(ctx context.Context, providers []policy.Provider) error {
			return takeOver(ctx, snapshots, cfg, providers, logger.WithName("envoy"))
		},
	}
	publisher.Init()
	serve := &xdsPort{server: server, after: publisher.Ready(), address: cfg.xdsAddress}
	for _, part := range []manager.Runnable{publisher, followers, writer, serve} {
		if err := mgr.Add(part); err != nil {
			return fmt.Errorf("add %T: %w", part, err)
		}
	}
	if err := setupReconcilers(mgr, cfg, followers, realClock); err != nil {
		return err
	}
	if err := mgr.AddHealthzCheck("alive", healthz.Ping); err != nil {
		return fmt.Errorf("add health check: %w", err)
	}
	if err := mgr.AddReadyzCheck("published", func(*http.Request) error { return serve.check() }); err != nil {
		return fmt.Errorf("add readiness check: %w", err)
	}
	return mgr.Start(ctx)
}

func newManager(cfg config, logger logr.Logger) (ctrl.Manager, error) {
	restConfig, err := loadConfig(cfg.kubeconfig)
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("build scheme: %w", err)
		}
	}
	keySecrets, err := labels.NewRequirement(v1alpha1.LabelAPIKey, selection.Exists, nil)
	if err != nil {
		return nil, fmt.Errorf("select the keys' secrets: %w", err)
	}
	// Of other namespaces, only the Secrets that are ours; of the installation's, the providers' credentials too.
	watched := map[string]cache.Config{}
	secrets := map[string]cache.Config{cfg.namespace: {}}
	for _, name := range watchedNamespaces(cfg) {
		watched[name] = cache.Config{}
		if name != cfg.namespace {
			secrets[name] = cache.Config{LabelSelector: labels.NewSelector().Add(*keySecrets)}
		}
	}
	grace := shutdownGrace
	mgr, err := ctrl.NewManager(restConfig, ctrl.Options{
		Scheme: scheme,
		Logger: logger,
		Cache: cache.Options{
			ByObject: map[client.Object]cache.ByObject{
				&corev1.Secret{}:        {Namespaces: secrets, Transform: withoutPlaintext},
				&v1alpha1.APIKey{}:      {Namespaces: watched},
				&v1alpha1.Application{}: {Namespaces: watched},
				&coordinationv1.Lease{}: {Namespaces: map[string]cache.Config{cfg.namespace: {}}},
			},
			DefaultTransform: cache.TransformStripManagedFields(),
		},
		Metrics:                       metricsserver.Options{BindAddress: cfg.metricsAddress},
		HealthProbeBindAddress:        cfg.healthAddress,
		PprofBindAddress:              cfg.debugAddress,
		LeaderElection:                cfg.leaderElect,
		LeaderElectionID:              "latchkey-manager",
		LeaderElectionNamespace:       cfg.namespace,
		LeaderElectionReleaseOnCancel: true,
		GracefulShutdownTimeout:       &grace,
	})
	if err != nil {
		return nil, fmt.Errorf("make manager: %w", err)
	}
	return mgr, nil
}

// watchedNamespaces are those whose keys are managed.
func watchedNamespaces(cfg config) []string {
	if len(cfg.watchNamespaces) == 0 {
		return []string{cache.AllNamespaces}
	}
	return cfg.watchNamespaces
}

func loadConfig(kubeconfig string) (*rest.Config, error) {
	var config *rest.Config
	var err error
	if kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	} else {
		config, err = ctrl.GetConfig()
	}
	if err != nil {
		return nil, fmt.Errorf("find the API server (give --kubeconfig outside a cluster): %w", err)
	}
	config.QPS = -1 // the API server's own priority and fairness is the limit
	return config, nil
}

// withoutPlaintext keeps plaintext keys out of the manager's memory: what is cached says that there is one, not which.
func withoutPlaintext(in any) (any, error) {
	if secret, ok := in.(*corev1.Secret); ok {
		secret.ManagedFields = nil
		if _, there := secret.Data[v1alpha1.SecretDataAPIKey]; there && secret.Labels[v1alpha1.LabelAPIKey] != "" {
			secret.Data[v1alpha1.SecretDataAPIKey] = []byte("x")
		}
	}
	return in, nil
}

// serverCertificates finds or makes the xDS port's certificates.
func serverCertificates(ctx context.Context, cfg config, mgr ctrl.Manager, c clock.WithTicker, logger logr.Logger) (certs.Source, error) {
	if !cfg.selfSigned {
		source := certs.Dir(cfg.certDir)
		if _, err := source(); err != nil {
			return nil, err
		}
		return source, nil
	}
	// Written and read past the cache, which does not run yet.
	direct, err := client.New(mgr.GetConfig(), client.Options{Scheme: mgr.GetScheme()})
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	issuer := &controllers.Certificates{Client: direct, Reader: direct, Namespace: cfg.namespace, Clock: c, Log: logger.WithName("certificates")}
	if err := issuer.Ensure(ctx); err != nil {
		return nil, err
	}
	if err := mgr.Add(issuer); err != nil {
		return nil, fmt.Errorf("add certificates: %w", err)
	}
	return issuer.Source(ctx, mgr.GetClient(), controllers.SecretXDS), nil
}

func setupReconcilers(mgr ctrl.Manager, cfg config, acks controllers.Acks, c clock.Clock) error {
	recorder := mgr.GetEventRecorder("latchkey-manager")
	kube := mgr.GetClient()
	for _, r := range []interface {
		SetupWithManager(mgr ctrl.Manager) error
	}{
		&controllers.ApplicationReconciler{Client: kube, Recorder: recorder, Clock: c, Acks: acks},
		&controllers.APIKeyReconciler{Client: kube, APIReader: mgr.GetAPIReader(), Recorder: recorder, Clock: c, Random: rand.Reader, Acks: acks, Namespace: cfg.namespace},
		&controllers.ModelReconciler{Client: kube, Clock: c, Acks: acks},
		&controllers.ProviderReconciler{Client: kube, Clock: c, Namespace: cfg.namespace},
		&controllers.SystemPolicyReconciler{Client: kube, Clock: c, Acks: acks},
	} {
		if err := r.SetupWithManager(mgr); err != nil {
			return fmt.Errorf("set up %T: %w", r, err)
		}
	}
	return nil
}

// takeOver puts the providers into Envoy's configuration. One that Envoy could not take is left out, so that the others go on.
func takeOver(ctx context.Context, snapshots cachev3.SnapshotCache, cfg config, providers []policy.Provider, logger logr.Logger) error {
	good := make([]policy.Provider, 0, len(providers))
	for _, p := range providers {
		if err := envoyconf.Check(p); err != nil {
			logger.Error(err, "left a provider out of Envoy's configuration", "provider", p.Name)
			continue
		}
		good = append(good, p)
	}
	resources, err := envoyconf.Build(envoyconf.Config{
		GatewayAddress:  cfg.gatewayAddress,
		GatewayPort:     uint32(cfg.gatewayPort),
		EnforcerSocket:  cfg.enforcerSocket,
		MaxRequestBytes: uint32(cfg.maxRequestBytes),
	}, good)
	if err != nil {
		return fmt.Errorf("build Envoy's configuration: %w", err)
	}
	snapshot, err := resources.Snapshot()
	if err != nil {
		return fmt.Errorf("build Envoy's snapshot: %w", err)
	}
	if err := snapshots.SetSnapshot(ctx, xds.EnvoyNodeGroup, snapshot); err != nil {
		return fmt.Errorf("set Envoy's snapshot: %w", err)
	}
	return nil
}

// xdsPort opens once everything has been compiled: an empty answer would revoke every key.
type xdsPort struct {
	server  *xds.Server
	after   <-chan struct{}
	address string
	open    atomic.Bool
}

// NeedLeaderElection says that every replica serves.
func (*xdsPort) NeedLeaderElection() bool { return false }

// Start serves until the context ends.
func (x *xdsPort) Start(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-x.after:
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", x.address)
	if err != nil {
		return fmt.Errorf("listen for xDS on %s: %w", x.address, err)
	}
	x.open.Store(true)
	return x.server.Run(ctx, listener)
}

func (x *xdsPort) check() error {
	if !x.open.Load() {
		return errors.New("the xDS port is not open yet: the policy set is being compiled")
	}
	return nil
}
