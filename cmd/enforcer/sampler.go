package main

import (
	"sync"
	"time"
)

// sampler lets through so many a second on average, and as many at once. It can be used by many goroutines.
type sampler struct {
	now       func() time.Time
	perSecond float64

	mu     sync.Mutex
	tokens float64
	last   time.Time
}

func newSampler(perSecond int, now func() time.Time) *sampler {
	return &sampler{now: now, perSecond: float64(perSecond), tokens: float64(perSecond), last: now()}
}

// allow reports whether one more may pass.
func (s *sampler) allow() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if elapsed := now.Sub(s.last).Seconds(); elapsed > 0 {
		s.tokens = min(s.perSecond, s.tokens+elapsed*s.perSecond)
		s.last = now
	}
	if s.tokens < 1 {
		return false
	}
	s.tokens--
	return true
}
