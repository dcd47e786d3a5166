package ops

import (
	"path"
	"strings"
)

// layerCache bounds the table pages of a layer opened on its own: it must not
// push the pages of open images out of the shared cache.
const layerCache = 4 << 20

// OpenLayer opens one image alone and read-only: no parents, no locks, no
// engine. For a set it is the set's leaf. The caller closes it.
func (l *Library) OpenLayer(r Ref) (Layer, error) {
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
	f, err := r.Dir.Open(r.Name, access)
	if err != nil {
		return nil, err
	}
	return found.Format.Open(f, OpenOptions{
		Ext:   strings.ToLower(path.Ext(r.Name)),
		Cache: NewCache(layerCache),
	})
}
