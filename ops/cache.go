package ops

import (
	"container/list"
	"sync"
)

// DefaultCacheBudget bounds the table pages of a whole daemon, in bytes.
const DefaultCacheBudget = 64 << 20

// Cache keeps pages of block tables and bitmaps of all open images within one
// budget, least recently used out first. Safe for concurrent use.
type Cache struct {
	mu struct {
		sync.Mutex
		budget, used int64
		lru          list.List // of *cachedPage, most recent first
	}
}

type cachedPage struct {
	owner *Pages
	index int64
	data  []byte
}

// NewCache makes a cache of at most budget bytes of pages.
func NewCache(budget int64) *Cache {
	c := &Cache{}
	c.mu.budget = budget
	return c
}

// Used is the number of bytes held now.
func (c *Cache) Used() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.used
}

// Pages is one table's share of a cache: pages of one size by index.
type Pages struct {
	cache *Cache
	size  int
	pages map[int64]*list.Element // guarded by cache.mu
}

// Pages makes a share for a table with pages of size bytes.
func (c *Cache) Pages(size int) *Pages {
	return &Pages{cache: c, size: size, pages: map[int64]*list.Element{}}
}

// Get answers page i, calling load with a cleared buffer when it is not there.
// The result is shared: it must not be changed. Nothing is kept when load fails.
// Two callers that miss at once may both load.
func (p *Pages) Get(i int64, load func(b []byte) error) ([]byte, error) {
	if b := p.lookup(i); b != nil {
		return b, nil
	}
	b := make([]byte, p.size)
	if err := load(b); err != nil {
		return nil, err
	}
	p.Put(i, b)
	return b, nil
}

func (p *Pages) lookup(i int64) []byte {
	c := p.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := p.pages[i]
	if !ok {
		return nil
	}
	c.mu.lru.MoveToFront(e)
	return e.Value.(*cachedPage).data
}

// Put stores b as page i; b belongs to the cache from then on.
func (p *Pages) Put(i int64, b []byte) {
	c := p.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := p.pages[i]; ok {
		e.Value.(*cachedPage).data = b
		c.mu.lru.MoveToFront(e)
		return
	}
	p.pages[i] = c.mu.lru.PushFront(&cachedPage{owner: p, index: i, data: b})
	c.mu.used += int64(p.size)
	for c.mu.used > c.mu.budget && c.mu.lru.Len() > 1 {
		c.evictLocked(c.mu.lru.Back())
	}
}

// Drop forgets every page of this share.
func (p *Pages) Drop() {
	c := p.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range p.pages {
		c.evictLocked(e)
	}
}

func (c *Cache) evictLocked(e *list.Element) {
	pg := e.Value.(*cachedPage)
	c.mu.lru.Remove(e)
	delete(pg.owner.pages, pg.index)
	c.mu.used -= int64(pg.owner.size)
}
