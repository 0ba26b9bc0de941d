package controllers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
)

// raceRetry is how long a reconciler lets the cache catch up with what somebody else has written.
const raceRetry = 100 * time.Millisecond

// isRace tells the errors that say no more than that the object has changed: every write names the version, or the identity, of what it
// was decided on.
func isRace(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err)
}

// retryOnRace looks again where the object has changed meanwhile. In a namespace that is going away nothing can be created, and nothing
// needs to be: what is in it is deleted, which is an event of its own. The context ends with the manager, which is no error.
func retryOnRace(err error) (ctrl.Result, error) {
	switch {
	case isRace(err):
		return ctrl.Result{RequeueAfter: raceRetry}, nil
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause), errors.Is(err, context.Canceled):
		return ctrl.Result{}, nil
	}
	return ctrl.Result{}, err
}

// addFinalizer makes sure that the finalizer is there. The object keeps its own status.
func addFinalizer(ctx context.Context, c client.Client, obj client.Object, finalizer string) error {
	if controllerutil.ContainsFinalizer(obj, finalizer) {
		return nil
	}
	updated := obj.DeepCopyObject().(client.Object)
	controllerutil.AddFinalizer(updated, finalizer)
	if err := c.Patch(ctx, updated, client.MergeFromWithOptions(obj, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("add finalizer to %s: %w", obj.GetName(), err)
	}
	obj.SetFinalizers(updated.GetFinalizers())
	obj.SetResourceVersion(updated.GetResourceVersion())
	return nil
}

func removeFinalizer(ctx context.Context, c client.Client, obj client.Object, finalizer string) error {
	updated := obj.DeepCopyObject().(client.Object)
	controllerutil.RemoveFinalizer(updated, finalizer)
	if err := c.Patch(ctx, updated, client.MergeFromWithOptions(obj, client.MergeFromWithOptimisticLock{})); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("remove finalizer from %s: %w", obj.GetName(), err)
	}
	return nil
}

// convert turns a status into the apply configuration that was generated for it: both have the same JSON.
func convert[T any](status any) (*T, error) {
	raw, err := json.Marshal(status)
	if err != nil {
		return nil, fmt.Errorf("encode status: %w", err)
	}
	out := new(T)
	if err := json.Unmarshal(raw, out); err != nil {
		return nil, fmt.Errorf("convert status: %w", err)
	}
	return out, nil
}
