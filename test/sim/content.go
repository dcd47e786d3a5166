package sim

import (
	"bytes"
	"slices"
)

const (
	pageSize   = 4096
	chunkPages = 256 // pages of a chunk: 1 MiB
	chunkSize  = chunkPages * pageSize
)

// token owns pages: those of another token are shared with a clone and are
// copied before they change. It has a size so that two have two addresses.
type token struct{ _ byte }

type page struct {
	owner *token
	b     [pageSize]byte
}

type chunk struct {
	owner *token
	used  int // pages that are not nil
	pages [chunkPages]*page
}

// zeroPage and zeroChunk stand for allocated zeros; nobody owns them.
var (
	zeroPage  = &page{}
	zeroChunk = func() *chunk {
		c := &chunk{used: chunkPages}
		for i := range c.pages {
			c.pages[i] = zeroPage
		}
		return c
	}()
)

// content is the sparse bytes of a file. A page that is missing is a hole.
type content struct {
	size   int64
	stored int64 // pages that are not holes
	tok    *token
	chunks map[int64]*chunk
	sorted []int64 // keys of chunks in order; nil when they changed
}

func newContent() content {
	return content{tok: &token{}, chunks: map[int64]*chunk{}}
}

// clone shares all pages; both sides copy what they change from now on.
func (c *content) clone() content {
	d := content{size: c.size, stored: c.stored, tok: &token{}, chunks: make(map[int64]*chunk, len(c.chunks)), sorted: c.sorted}
	c.tok = &token{}
	for k, ch := range c.chunks {
		d.chunks[k] = ch
	}
	return d
}

// ownChunk is chunk k, made or copied so that it may be changed.
func (c *content) ownChunk(k int64) *chunk {
	ch := c.chunks[k]
	switch {
	case ch == nil:
		ch = &chunk{owner: c.tok}
		c.sorted = nil
	case ch.owner != c.tok:
		copied := *ch
		copied.owner = c.tok
		ch = &copied
	default:
		return ch
	}
	c.chunks[k] = ch
	return ch
}

// ownPage is page i, made or copied so that it may be changed.
func (c *content) ownPage(i int64) *page {
	ch := c.ownChunk(i / chunkPages)
	at := &ch.pages[i%chunkPages]
	switch {
	case *at == nil:
		*at = &page{owner: c.tok}
		ch.used++
		c.stored++
	case (*at).owner != c.tok:
		*at = &page{owner: c.tok, b: (*at).b}
	}
	return *at
}

func (c *content) page(i int64) *page { return c.chunks[i/chunkPages].page(i % chunkPages) }

// page is page i of a chunk, nil where that is a hole.
func (ch *chunk) page(i int64) *page {
	if ch == nil {
		return nil
	}
	return ch.pages[i]
}

// read copies what is there; p must end within the size.
func (c *content) read(p []byte, off int64) {
	for len(p) > 0 {
		at := off % chunkSize
		n := min(int64(len(p)), chunkSize-at)
		if ch := c.chunks[off/chunkSize]; ch != nil {
			ch.read(p[:n], at)
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+n
	}
}

// read is content.read inside one chunk, at its byte off.
func (ch *chunk) read(p []byte, off int64) {
	for len(p) > 0 {
		at := off % pageSize
		n := min(int64(len(p)), pageSize-at)
		if pg := ch.pages[off/pageSize]; pg != nil && pg != zeroPage {
			copy(p[:n], pg.b[at:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+n
	}
}

// missing counts the holes among the pages of [off, off+n).
func (c *content) missing(off, n int64) int64 {
	var holes int64
	for i := off / pageSize; i*pageSize < off+n; i++ {
		if c.page(i) == nil {
			holes++
		}
	}
	return holes
}

func (c *content) write(p []byte, off int64) {
	for len(p) > 0 {
		i, at := off/pageSize, off%pageSize
		n := min(pageSize-at, int64(len(p)))
		if n == pageSize && bytes.Equal(p[:n], zeroPage.b[:]) {
			c.storeZero(i)
		} else {
			copy(c.ownPage(i).b[at:], p)
		}
		p, off = p[n:], off+n
	}
	c.size = max(c.size, off)
}

// storeZero makes page i stored zeros.
func (c *content) storeZero(i int64) {
	ch := c.ownChunk(i / chunkPages)
	at := &ch.pages[i%chunkPages]
	if *at == nil {
		ch.used++
		c.stored++
	}
	*at = zeroPage
}

// truncate sets the size; what lies past a smaller one is gone for good.
func (c *content) truncate(size int64) {
	if size < c.size {
		c.punch(size, c.size-size)
	}
	c.size = size
}

// punch drops whole pages of [off, off+n) and clears parts of others.
func (c *content) punch(off, n int64) {
	end := off + n
	for _, k := range c.keys() {
		lo, hi := max(off, k*chunkSize), min(end, (k+1)*chunkSize)
		if lo >= hi {
			continue
		}
		if hi-lo == chunkSize {
			c.stored -= int64(c.chunks[k].used)
			delete(c.chunks, k)
			c.sorted = nil
			continue
		}
		c.punchWithin(lo, hi)
	}
}

// punchWithin is punch inside one chunk.
func (c *content) punchWithin(lo, hi int64) {
	for i := lo / pageSize; i*pageSize < hi; i++ {
		if c.page(i) == nil {
			continue
		}
		from, to := max(lo, i*pageSize), min(hi, (i+1)*pageSize)
		// A file's last page may be dropped too: nothing lies behind it.
		if from == i*pageSize && (to == (i+1)*pageSize || to >= c.size) {
			ch := c.ownChunk(i / chunkPages)
			ch.pages[i%chunkPages] = nil
			ch.used--
			c.stored--
			continue
		}
		clear(c.ownPage(i).b[from-i*pageSize : to-i*pageSize])
	}
}

// allocate fills the holes of [off, off+n) with stored zeros.
func (c *content) allocate(off, n int64) {
	end := off + n
	for i := off / pageSize; i*pageSize < end; {
		k := i / chunkPages
		if i%chunkPages == 0 && (i+chunkPages)*pageSize <= end && c.chunks[k] == nil {
			c.chunks[k] = zeroChunk
			c.sorted = nil
			c.stored += chunkPages
			i += chunkPages
			continue
		}
		if c.page(i) == nil {
			c.storeZero(i)
		}
		i++
	}
	c.size = max(c.size, end)
}

// keys are the numbers of the chunks in order.
func (c *content) keys() []int64 {
	if c.sorted == nil {
		c.sorted = make([]int64, 0, len(c.chunks))
		for k := range c.chunks {
			c.sorted = append(c.sorted, k)
		}
		slices.Sort(c.sorted)
	}
	return c.sorted
}

// nextData finds the first run of stored pages at or after off; ok is false
// when only a hole is left.
func (c *content) nextData(off int64) (data, hole int64, ok bool) {
	keys := c.keys()
	first, _ := slices.BinarySearch(keys, off/chunkSize)
	next := int64(-1) // page that would continue the run
	for _, k := range keys[first:] {
		ch := c.chunks[k]
		for i := max(k*chunkPages, off/pageSize); i < (k+1)*chunkPages; i++ {
			stored := ch.pages[i%chunkPages] != nil
			switch {
			case next < 0 && stored:
				data, next = max(off, i*pageSize), i+1
			case next >= 0 && stored && i == next:
				next++
			case next >= 0:
				return data, min(next*pageSize, c.size), data < c.size
			}
		}
	}
	if next < 0 || data >= c.size {
		return 0, 0, false
	}
	return data, min(next*pageSize, c.size), true
}
