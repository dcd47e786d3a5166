package ops

import (
	"context"
	"path"
	"strings"
)

// layerCache bounds the table pages of a layer opened on its own: it must not
// push the pages of open images out of the shared cache.
const layerCache = 4 << 20

// OpenLayer opens one image alone and read-only: no parents, no locks. What is
// open for writing here is looked at through its engine: its file, read beside
// the writer, may be between two states. For a set it is the set's leaf. The
// caller closes it.
func (l *Library) OpenLayer(r Ref) (Layer, error) {
	if into, ok := l.MergedInto(r); ok {
		r = into
	}
	found, err := l.Inspect(r)
	if err != nil {
		return nil, err
	}
	if found.Err != nil {
		return nil, found.Err
	}
	access := Read
	if found.Set != nil {
		r, found, access = found.Leaf, found.itself(), NoFollow
	}
	if b, err := l.borrow(found.Stat.ID); b != nil || err != nil {
		return b, err
	}
	f, err := r.Dir.Open(r.Name, access)
	if err != nil {
		return nil, err
	}
	return found.Format.Open(f, OpenOptions{
		Ext:   strings.ToLower(path.Ext(r.Name)),
		Cache: NewCache(layerCache),
	})
}

// borrowed is the layer of an engine in other hands. Closing it gives back the
// part in the engine, which cannot close before that.
type borrowed struct {
	Layer
	engine *Engine
}

// borrow is the layer of a file that is open for writing here; nil where it is
// not.
func (l *Library) borrow(id FileID) (Layer, error) {
	l.mu.Lock()
	e := l.writingLocked(id)
	if e != nil {
		e.use.refs++
	}
	l.mu.Unlock()
	if e == nil {
		return nil, nil
	}
	e.mu.RLock()
	layer, err := e.mu.layer, e.refusalLocked()
	e.mu.RUnlock()
	b := &borrowed{layer, e}
	if err != nil {
		_ = b.Close() // whoever ended it was told how that went
		return nil, err
	}
	return b, nil
}

// Close gives the engine back.
func (b *borrowed) Close() error { return b.engine.lib.release(b.engine) }

// Check implements [Checker].
func (b *borrowed) Check(ctx context.Context, report func(Anomaly)) error {
	if c, ok := b.Layer.(Checker); ok {
		return c.Check(ctx, report)
	}
	return nil
}

// CheckTable implements [TableChecker].
func (b *borrowed) CheckTable(ctx context.Context, report func(Anomaly)) error {
	if c, ok := b.Layer.(TableChecker); ok {
		return c.CheckTable(ctx, report)
	}
	return nil
}
