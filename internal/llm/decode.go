package llm

import (
	"compress/gzip"
	"compress/zlib"
	"errors"
	"io"
	"sync"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
)

// maxDecoded bounds what is read of a compressed answer: no answer is as large, and a small one can claim to be.
const maxDecoded = 256 << 20

var errBomb = errors.New("the compressed answer is too large")

// decoder decompresses an answer as it passes. Its goroutine ends with close.
type decoder struct {
	in    *io.PipeWriter
	ended chan struct{}

	mu  sync.Mutex
	out []byte
	err error
}

// newDecoder makes a decoder of a content-encoding; nil: it is one that is not known.
func newDecoder(encoding string) *decoder {
	var open func(r io.Reader) (io.Reader, error)
	switch encoding {
	case "gzip", "x-gzip":
		open = func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }
	case "deflate":
		open = func(r io.Reader) (io.Reader, error) { return zlib.NewReader(r) }
	case "br":
		open = func(r io.Reader) (io.Reader, error) { return brotli.NewReader(r), nil }
	case "zstd":
		open = func(r io.Reader) (io.Reader, error) {
			z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
			if err != nil {
				return nil, err
			}
			return z.IOReadCloser(), nil
		}
	default:
		return nil
	}
	r, w := io.Pipe()
	d := &decoder{in: w, ended: make(chan struct{})}
	go d.run(r, open)
	return d
}

func (d *decoder) run(r *io.PipeReader, open func(io.Reader) (io.Reader, error)) {
	defer close(d.ended)
	err := d.decode(r, open)
	d.mu.Lock()
	d.err = err
	d.mu.Unlock()
	if err == nil {
		err = io.EOF
	}
	_ = r.CloseWithError(err) // write does not block any more
}

func (d *decoder) decode(r io.Reader, open func(io.Reader) (io.Reader, error)) error {
	plain, err := open(r)
	if err != nil {
		return err
	}
	if c, ok := plain.(io.Closer); ok {
		defer func() { _ = c.Close() }()
	}
	buf := make([]byte, 32<<10)
	total := 0
	for {
		n, err := plain.Read(buf)
		if total += n; total > maxDecoded {
			return errBomb
		}
		d.mu.Lock()
		d.out = append(d.out, buf[:n]...)
		d.mu.Unlock()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// write takes a piece in, and returns what has been decompressed since the last call. At the end that is all there is.
func (d *decoder) write(piece []byte, end bool) ([]byte, error) {
	if _, err := d.in.Write(piece); err != nil && !errors.Is(err, io.EOF) {
		return d.take(), err
	}
	if end {
		_ = d.in.Close()
		<-d.ended
	}
	out := d.take()
	d.mu.Lock()
	defer d.mu.Unlock()
	return out, d.err
}

func (d *decoder) take() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := d.out
	d.out = nil
	return out
}

// close ends the goroutine.
func (d *decoder) close() {
	_ = d.in.CloseWithError(io.ErrUnexpectedEOF)
	<-d.ended
}
