package keyset

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const benchEntries = 100_000

// One of 100,000 keys changes, and each client receives and acknowledges the change. Side by side with go-control-plane's own cache
// for such a type, whose costs go by what there is.
func BenchmarkUpdateOneOf100k(b *testing.B) {
	for _, clients := range []int{1, 4} {
		b.Run(fmt.Sprintf("cache=changelog/clients=%d", clients), func(b *testing.B) {
			c := NewCache(SystemClock{})
			c.Update(many(benchEntries, 160), nil)
			benchUpdates(b, c, clients, func(i int) {
				body := []byte(fmt.Sprintf("%0160d", -1-i))
				c.Update([]Resource{{Name: fmt.Sprintf("key/%06d", i%benchEntries), Version: "v" + strconv.Itoa(i), Body: body}}, nil)
			})
		})
		b.Run(fmt.Sprintf("cache=linear/clients=%d", clients), func(b *testing.B) {
			entries := make(map[string]types.Resource, benchEntries)
			for _, r := range many(benchEntries, 160) {
				entries[r.Name] = wrapperspb.Bytes(r.Body)
			}
			c := cache.NewLinearCache(TypeURL, cache.WithInitialResources(entries))
			benchUpdates(b, c, clients, func(i int) {
				body := []byte(fmt.Sprintf("%0160d", -1-i))
				if err := c.UpdateResource(fmt.Sprintf("key/%06d", i%benchEntries), wrapperspb.Bytes(body)); err != nil {
					b.Fatal(err)
				}
			})
		})
	}
}

func benchUpdates(b *testing.B, c cache.Cache, clients int, update func(i int)) {
	b.Helper()
	streams := make([]*testClient, clients)
	for i := range streams {
		streams[i] = connect(b, c, nil)
		streams[i].sync()
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		update(i)
		for _, k := range streams {
			k.receive()
			k.mustAck()
		}
	}
}

// A client connects anew, with all versions, and nothing has changed.
func BenchmarkReconnectWith100k(b *testing.B) {
	c := NewCache(SystemClock{})
	c.Update(many(benchEntries, 160), nil)
	k := connect(b, c, nil)
	k.sync()
	k.close()
	b.ReportAllocs()
	for b.Loop() {
		again := connect(b, c, k.held)
		again.sync()
		again.close()
	}
}
