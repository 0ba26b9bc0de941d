package keyset

import (
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Streams come and go, each closing its channel as the server does, while updates come in. The race detector watches.
func TestConcurrentStreamsAndUpdates(t *testing.T) {
	t.Parallel()
	c := NewCache(SystemClock{})
	var updates, clients sync.WaitGroup
	done := make(chan struct{})
	updates.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			c.Update([]Resource{res("key/"+strconv.Itoa(i%50), strconv.Itoa(i))}, []string{"key/" + strconv.Itoa((i*7)%50)})
		}
	})
	for range 4 {
		clients.Go(func() {
			held := map[string]string{}
			for range 15 {
				k := connect(t, c, held)
				for range 10 {
					r, ok := <-k.out
					if !ok {
						t.Error("the channel was closed by somebody else")
						return
					}
					k.last, _ = r.GetDeltaDiscoveryResponse()
					k.sub.SetReturnedResources(r.GetNextVersionMap())
					if err := k.ack(); err != nil { // too far behind, on a slow machine
						break
					}
				}
				k.close()
				held = k.held
			}
		})
	}
	clients.Wait()
	close(done)
	updates.Wait()
	k := connect(t, c, nil)
	k.sync()
	wantInSync(t, c, k)
}

// Whatever happens, a client that takes everything ends up with what the cache holds, and an acknowledged position never lies.
func TestRandomHistories(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		clock := newManualClock()
		c := NewCache(clock)
		k := connect(t, c, nil)
		var history []string
		for range 300 {
			switch n := rng.IntN(10); {
			case n < 4:
				r := res("key/"+strconv.Itoa(rng.IntN(20)), strconv.Itoa(rng.IntN(5)))
				r.Revokes = rng.IntN(3) == 0
				history = append(history, "put "+r.Name)
				c.Update([]Resource{r}, nil)
			case n < 5:
				c.Update(nil, []string{"key/" + strconv.Itoa(rng.IntN(20))})
			case n < 8 && len(k.out) > 0:
				k.receive()
				if rng.IntN(3) == 0 {
					if names := namesOf(k.last); rng.IntN(2) == 0 {
						k.nack(strings.TrimPrefix(names[rng.IntN(len(names))], "-"))
					} else {
						k.nack()
					}
					break
				}
				k.mustAck()
				if k.last.GetSystemVersionInfo() == strconv.FormatUint(c.Position(), 10) {
					wantInSync(t, c, k)
				}
			case n == 8:
				clock.advance(time.Duration(rng.IntN(3000)) * time.Millisecond)
			case n == 9 && rng.IntN(10) == 0:
				k.close()
				k = connect(t, c, k.held)
			}
		}
		for range 20 {
			k.sync()
			clock.advance(longestRetry)
		}
		wantInSync(t, c, k)
		if got := k.last.GetSystemVersionInfo(); got != strconv.FormatUint(c.Position(), 10) {
			t.Fatalf("seed %d: the position is %s in the end, want %d; history %v", seed, got, c.Position(), history)
		}
	}
}
