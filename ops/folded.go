package ops

import (
	"path"
	"strings"
	"unicode"
)

// maxFolded bounds the names that differ in case alone which are followed at
// each step of a path.
const maxFolded = 16

// folder reads directories once and finds names in them with case ignored
// (simple Unicode folding). It is for one call: what it read grows old.
type folder struct {
	read map[string]map[string][]string // host path of a directory: folded name: names
}

// find lists the paths below dir that are equal to parts when case is ignored,
// spelled as the host spells them; exact spellings first. A directory that
// cannot be read holds no such name.
func (f *folder) find(d Dir, dir string, parts []string) []string {
	at := []string{dir}
	for _, part := range parts {
		var next []string
		for _, dir := range at {
			next = append(next, f.names(d, dir, part)...)
		}
		if at = next; len(at) > maxFolded {
			at = at[:maxFolded]
		}
	}
	return at
}

func (f *folder) names(d Dir, dir, name string) []string {
	var exact, other []string
	for _, n := range f.list(d, dir)[foldKey(name)] {
		switch {
		case n == name:
			exact = append(exact, path.Join(dir, n))
		case strings.EqualFold(n, name):
			other = append(other, path.Join(dir, n))
		}
	}
	return append(exact, other...)
}

func (f *folder) list(d Dir, dir string) map[string][]string {
	key := d.Path(dir)
	if names, ok := f.read[key]; ok {
		return names
	}
	names := map[string][]string{}
	list, err := d.List(dir)
	if err == nil {
		for _, e := range list {
			if e.Name != StateDir {
				names[foldKey(e.Name)] = append(names[foldKey(e.Name)], e.Name)
			}
		}
	}
	if f.read == nil {
		f.read = map[string]map[string][]string{}
	}
	f.read[key] = names
	return names
}

// foldKey is equal for names that strings.EqualFold calls equal.
func foldKey(s string) string {
	return strings.Map(func(c rune) rune {
		least := c
		for o := unicode.SimpleFold(c); o != c; o = unicode.SimpleFold(o) {
			least = min(least, o)
		}
		return least
	}, s)
}
