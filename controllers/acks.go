package controllers

import (
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
)

// AckState is how far the connected enforcers have followed an object.
type AckState struct {
	Enforcers    int    // connected, to all replicas
	Acknowledged bool   // by all of them, and there is one
	Rejection    string // what an enforcer said when it refused the configuration; empty: none did
}

// Acks tells how far the connected enforcers have followed. *Followers is the one in use.
type Acks interface {
	// Check tells it of an object at its resource version. If it is not acknowledged, the object is sent on Events once there is news.
	Check(obj client.Object) AckState
	// Events is where objects of the example's kind are sent.
	Events(example client.Object) <-chan event.GenericEvent
}

var _ Acks = (*Followers)(nil)
