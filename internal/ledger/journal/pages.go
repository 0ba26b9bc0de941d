package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// bbolt believes its file. A damaged one makes it read outside of a page, panic in a goroutine where nobody can recover, or walk in
// circles until the memory is full. So the pages are walked here first, without trust, and bbolt sees none that this walk refuses.
// The format is that of bbolt's package internal/common: the page in page.go, the head in meta.go.
const (
	pageHeadSize   = 16 // id 8, flags 2, count 2, overflow 4
	branchElemSize = 16 // position 4, key size 4, page 8
	leafElemSize   = 16 // flags 4, position 4, key size 4, value size 4
	bucketSize     = 16 // root page 8, sequence 8; an inline page follows if the root page is 0
	metaSize       = 64

	branchPage   = 0x01
	leafPage     = 0x02
	freelistPage = 0x10
	bucketElem   = 0x01

	metaMagic   = 0xED0CDAED
	metaVersion = 2

	// noFreelist stands in the place of the free pages' list when there is none, which we never write.
	noFreelist = ^uint64(0)
	// longList is the count of a list that has its real count in its first entry.
	longList = 0xFFFF

	maxDepth = 32 // of pages within pages: a sound file has less than 10
)

// meta is what one of the two heads of the file says.
type meta struct {
	pageSize, root, freelist, pages, tx uint64
}

func parseMeta(page []byte) (meta, error) {
	b := page[pageHeadSize : pageHeadSize+metaSize]
	order := binary.NativeEndian
	h := fnv.New64a()
	_, _ = h.Write(b[:56])
	switch {
	case order.Uint32(b) != metaMagic:
		return meta{}, errors.New("it is not a database")
	case order.Uint64(b[56:]) != h.Sum64():
		return meta{}, errors.New("its head's checksum is wrong")
	case order.Uint32(b[4:]) > metaVersion:
		return meta{}, fmt.Errorf("its pages have version %d: %w", order.Uint32(b[4:]), errNewer)
	case order.Uint32(b[4:]) != metaVersion:
		return meta{}, fmt.Errorf("its pages have version %d", order.Uint32(b[4:]))
	}
	return meta{
		pageSize: uint64(order.Uint32(b[8:])), root: order.Uint64(b[16:]), freelist: order.Uint64(b[32:]),
		pages: order.Uint64(b[40:]), tx: order.Uint64(b[48:]),
	}, nil
}

// walker walks the pages of a file.
type walker struct {
	file io.ReaderAt
	size int64
	meta meta
	seen []bool // by page
}

// soundPages returns an error if bbolt cannot safely read the file. With halved, one of the file's two heads cannot be used: if it was
// the newer, the latest commit is lost.
func soundPages(file io.ReaderAt, size int64) (halved bool, err error) {
	m, halved, err := findMeta(file, size)
	if err != nil {
		return halved, err
	}
	if m.pages < 4 || m.pages > uint64(size)/m.pageSize {
		return halved, fmt.Errorf("it is cut: it should have %d pages of %d bytes", m.pages, m.pageSize)
	}
	w := &walker{file: file, size: size, meta: m, seen: make([]bool, m.pages)}
	w.seen[0], w.seen[1] = true, true
	if err := w.tree(m.root, 0); err != nil {
		return halved, err
	}
	if err := w.free(); err != nil {
		return halved, err
	}
	for id, seen := range w.seen {
		if !seen {
			return halved, fmt.Errorf("page %d is neither used nor free", id)
		}
	}
	return halved, nil
}

// findMeta returns the head that bbolt will use: the newer of those that are sound.
func findMeta(file io.ReaderAt, size int64) (meta, bool, error) {
	read := func(at int64) (meta, error) {
		page := make([]byte, pageHeadSize+metaSize)
		if at+int64(len(page)) > size {
			return meta{}, errors.New("it is too short")
		}
		if _, err := file.ReadAt(page, at); err != nil {
			return meta{}, err
		}
		m, err := parseMeta(page)
		if err == nil && (m.pageSize < 512 || m.pageSize > 1<<16 || m.pageSize&(m.pageSize-1) != 0) {
			err = fmt.Errorf("its pages have %d bytes", m.pageSize)
		}
		return m, err
	}
	first, firstErr := read(0)
	if errors.Is(firstErr, errNewer) {
		return meta{}, false, firstErr
	}
	// Without the first, the page size has to be guessed.
	var second meta
	secondErr := firstErr
	if firstErr == nil {
		second, secondErr = read(int64(first.pageSize))
	} else {
		for at := int64(1024); at <= 1<<16 && secondErr != nil; at *= 2 {
			if second, secondErr = read(at); secondErr == nil && second.pageSize != uint64(at) {
				secondErr = firstErr
			}
		}
	}
	switch {
	case errors.Is(secondErr, errNewer):
		return meta{}, false, secondErr
	case firstErr != nil && secondErr != nil:
		return meta{}, false, firstErr
	case firstErr != nil:
		return second, true, nil //nolint:nilerr // one of the two is enough
	case secondErr != nil:
		return first, true, nil //nolint:nilerr // one of the two is enough
	case second.pageSize != first.pageSize:
		return meta{}, false, errors.New("its two heads differ in the size of a page")
	case first.tx > second.tx:
		return first, first.tx != second.tx+1, nil
	default:
		return second, second.tx != first.tx+1, nil
	}
}

// page reads a page with what overflows from it, and marks it as used.
func (w *walker) page(id uint64) ([]byte, error) {
	if id < 2 || id >= w.meta.pages {
		return nil, fmt.Errorf("page %d is outside of the file", id)
	}
	var start [pageHeadSize]byte
	if _, err := w.file.ReadAt(start[:], int64(id*w.meta.pageSize)); err != nil {
		return nil, fmt.Errorf("read page %d: %w", id, err)
	}
	if own := binary.NativeEndian.Uint64(start[:]); own != id {
		return nil, fmt.Errorf("page %d says that it is page %d", id, own)
	}
	overflow := uint64(binary.NativeEndian.Uint32(start[12:]))
	if overflow >= w.meta.pages-id {
		return nil, fmt.Errorf("page %d ends outside of the file", id)
	}
	for i := id; i <= id+overflow; i++ {
		if w.seen[i] {
			return nil, fmt.Errorf("page %d is used twice", i)
		}
		w.seen[i] = true
	}
	content := make([]byte, (1+overflow)*w.meta.pageSize)
	if _, err := w.file.ReadAt(content, int64(id*w.meta.pageSize)); err != nil {
		return nil, fmt.Errorf("read page %d: %w", id, err)
	}
	return content, nil
}

func (w *walker) tree(id uint64, depth int) error {
	content, err := w.page(id)
	if err != nil {
		return err
	}
	if err := w.elements(content, depth); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// elements walks what is on a page, and below it.
func (w *walker) elements(content []byte, depth int) error {
	if depth > maxDepth {
		return errors.New("it is too deep")
	}
	if len(content) < pageHeadSize {
		return errors.New("it is too short")
	}
	order := binary.NativeEndian
	flags, count := order.Uint16(content[8:]), int(order.Uint16(content[10:]))
	size := leafElemSize
	switch flags {
	case leafPage:
	case branchPage:
		size = branchElemSize
		if count == 0 {
			return errors.New("it leads nowhere")
		}
	default:
		return fmt.Errorf("it is of kind %#x", flags)
	}
	if pageHeadSize+count*size > len(content) {
		return fmt.Errorf("it cannot hold %d entries", count)
	}
	var last []byte
	for i := range count {
		at := pageHeadSize + i*size
		elem := content[at : at+size]
		if flags == branchPage {
			key, _, err := part(content, at, order.Uint32(elem), order.Uint32(elem[4:]), 0)
			if err != nil {
				return err
			}
			if i > 0 && bytes.Compare(last, key) >= 0 {
				return errors.New("its keys are out of order")
			}
			last = key
			if err := w.tree(order.Uint64(elem[8:]), depth+1); err != nil {
				return err
			}
			continue
		}
		key, value, err := part(content, at, order.Uint32(elem[4:]), order.Uint32(elem[8:]), order.Uint32(elem[12:]))
		if err != nil {
			return err
		}
		if i > 0 && bytes.Compare(last, key) >= 0 {
			return errors.New("its keys are out of order")
		}
		last = key
		if err := w.leaf(order.Uint32(elem), value, depth); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) leaf(flags uint32, value []byte, depth int) error {
	switch {
	case flags == 0:
		return nil
	case flags != bucketElem:
		return fmt.Errorf("an entry is of kind %#x", flags)
	case len(value) < bucketSize:
		return errors.New("a bucket is too short")
	}
	if root := binary.NativeEndian.Uint64(value); root != 0 {
		return w.tree(root, depth+1)
	}
	return w.elements(value[bucketSize:], depth+1)
}

// part returns an element's key and value, which start that far behind the element.
func part(content []byte, elem int, position, keySize, valueSize uint32) (key, value []byte, err error) {
	start := uint64(elem) + uint64(position)
	middle := start + uint64(keySize)
	end := middle + uint64(valueSize)
	if end > uint64(len(content)) {
		return nil, nil, errors.New("an entry ends outside of it")
	}
	return content[start:middle], content[middle:end], nil
}

// free marks the pages that the list of free pages names.
func (w *walker) free() error {
	if w.meta.freelist == noFreelist {
		return errors.New("it has no list of free pages")
	}
	content, err := w.page(w.meta.freelist)
	if err != nil {
		return err
	}
	order := binary.NativeEndian
	if flags := order.Uint16(content[8:]); flags != freelistPage {
		return fmt.Errorf("page %d is no list of free pages", w.meta.freelist)
	}
	rest := content[pageHeadSize:]
	count := uint64(order.Uint16(content[10:]))
	if count == longList {
		count, rest = order.Uint64(rest), rest[8:]
	}
	if count > uint64(len(rest))/8 {
		return errors.New("its list of free pages is cut")
	}
	for i := range count {
		id := order.Uint64(rest[8*i:])
		if id < 2 || id >= w.meta.pages || w.seen[id] {
			return fmt.Errorf("page %d is listed as free", id)
		}
		w.seen[id] = true
	}
	return nil
}
