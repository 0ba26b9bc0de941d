package ports

import (
	"net"
	"strconv"
	"testing"
)

func TestFreePortsDifferAndCanBeListenedOn(t *testing.T) {
	t.Parallel()
	seen := map[int]bool{}
	for range 50 {
		port, err := Free(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if seen[port] || port < lowest || port >= lowest+count {
			t.Fatalf("port %d came twice, or from outside the range", port)
		}
		seen[port] = true
		ln, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			t.Fatal(err)
		}
		if Listens(t.Context(), port) == nil {
			t.Fatal("a port that is listened on counts as free")
		}
		_ = ln.Close()
	}
}
