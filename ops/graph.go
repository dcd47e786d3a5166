package ops

import (
	"slices"
)

// Graph is every image of the folder with its links.
func (l *Library) Graph() (*Graph, error) {
	r := &resolver{lib: l}
	if err := r.scan(); err != nil {
		return nil, err
	}
	b := &grapher{resolver: r, children: map[FileID][]string{}, above: map[FileID]*Found{}, broken: map[FileID]error{}}
	var nodes []GraphNode
	for _, f := range r.index {
		n := GraphNode{Ref: f.Ref, Found: f, ChainErr: f.Err, Depth: 1}
		if f.Set == nil && f.Err == nil {
			n.SameID = r.sameID(f)
			if f.Info.Parent != nil {
				b.link(&n)
			}
		}
		if f.Ref.Dir.Path(".") == l.opts.Top.Path(".") {
			nodes = append(nodes, n)
		}
	}
	for i := range nodes {
		n := &nodes[i]
		if n.Found.Set == nil {
			n.Children = b.children[n.Found.Stat.ID]
		}
		if n.ChainErr == nil {
			b.follow(n)
		}
	}
	return &Graph{Images: nodes}, nil
}

// grapher keeps the links of a graph by identity.
type grapher struct {
	*resolver
	children map[FileID][]string
	above    map[FileID]*Found // the parent that was found
	broken   map[FileID]error  // why there is none
}

// link fills in the parent of a node and notes the node as a child of it.
func (g *grapher) link(n *GraphNode) {
	own := n.Found.Stat.ID
	got, _, err := g.resolve(child{found: n.Found, below: []FileID{own}})
	if err != nil {
		n.Err, n.ChainErr = err, err
		g.broken[own] = err
		return
	}
	n.Parent, n.Rule = got.found.Ref.Path(), got.rule
	id := got.found.Stat.ID
	g.children[id] = append(g.children[id], n.Ref.Path())
	g.above[own] = got.found
}

// follow goes up from a node: each link may hold, and still lead round in a circle
// or to one that does not. A parent in a folder that is not scanned is asked for
// its own chain.
func (g *grapher) follow(n *GraphNode) {
	at := n.Found.itself()
	seen := []FileID{at.Stat.ID}
	for at.Info.Parent != nil {
		err := g.broken[at.Stat.ID]
		next := g.above[at.Stat.ID]
		switch {
		case err == nil && next == nil:
			links, lerr := g.lib.ChainOf(at.Ref)
			n.Depth += len(links) - 1
			if n.ChainErr = lerr; lerr == nil {
				n.ChainErr = links[len(links)-1].Err
			}
			return
		case err == nil && slices.Contains(seen, next.Stat.ID):
			err = Errorf(ErrCycle, StatusCycle, "parent of %s: %s is in its own chain", at.Ref.Path(), next.Ref.Path())
		case err == nil && len(seen) == MaxChain:
			err = tooDeep(n.Ref)
		case err == nil && next.Err != nil:
			err = next.Err
		}
		if err != nil {
			n.ChainErr = err
			return
		}
		at, n.Depth = next, n.Depth+1
		seen = append(seen, at.Stat.ID)
	}
}

// sameID lists the other files with the link id of f: copies, whose children
// cannot be told apart by id.
func (r *resolver) sameID(f *Found) []string {
	var list []string
	for _, o := range r.byLink[f.Info.LinkID] {
		if o.Stat.ID != f.Stat.ID && o.Format.Number == f.Format.Number && !f.Info.LinkID.IsZero() {
			list = append(list, o.Ref.Path())
		}
	}
	return list
}
