package ops

import (
	"net/url"
	"strings"
)

// Bounds of a recorded path.
const (
	maxRecordedPath  = 32767 // characters of a Windows path, its prefix included
	maxRecordedParts = 256   // components; each suffix costs a walk
)

// recordedPath is a path out of an image, made comparable with names of the
// host. It names nothing yet: what it may lead to is the resolver's to decide.
type recordedPath struct {
	abs   bool     // it had a root of some system
	unix  bool     // the root was "/", so that it may be an absolute host path
	up    int      // leading ".." of a relative path
	parts []string // the rest: no ".", "..", separators or control characters; not empty
}

// base is the last component.
func (r recordedPath) base() string { return r.parts[len(r.parts)-1] }

// parseRecorded reads a path as Windows and libvhd store it. The form of the
// text decides, not the field it stood in: relative paths occur in fields for
// absolute ones. ErrUsage for what can name no file.
func parseRecorded(stored string) (recordedPath, error) {
	s := strings.TrimRight(stored, "\x00")
	if len(s) > maxRecordedPath {
		return recordedPath{}, Errorf(ErrUsage, 0, "recorded path: %d bytes, at most %d", len(s), maxRecordedPath)
	}
	var r recordedPath
	if hasPrefixFold(s, "file:") {
		rest, err := fromFileURL(s[len("file:"):])
		if err != nil {
			return r, Errorf(ErrUsage, 0, "recorded path %.200q: %v", stored, err)
		}
		s = rest
	}
	if strings.ContainsFunc(s, func(c rune) bool { return c < 0x20 || c == 0x7f }) {
		return r, Errorf(ErrUsage, 0, "recorded path %.200q: holds control characters", stored)
	}
	r.unix = strings.HasPrefix(s, "/") && !strings.HasPrefix(s, "//")
	s = r.cutRoot(strings.ReplaceAll(s, `\`, "/"))
	if err := r.take(strings.Split(s, "/")); err != nil {
		return recordedPath{}, Errorf(ErrUsage, 0, "recorded path %.200q: %v", stored, err)
	}
	return r, nil
}

// cutRoot takes the root off: drive letter, UNC, device namespace or "/". What
// follows is looked for below the folder, a server's and a share's name too.
func (r *recordedPath) cutRoot(s string) string {
	for _, prefix := range []string{"//?/", "//./", "/??/"} {
		if strings.HasPrefix(s, prefix) {
			r.abs = true
			s = s[len(prefix):]
			break
		}
	}
	switch {
	case r.abs && hasPrefixFold(s, "unc/"):
		return s[len("unc/"):]
	case r.abs && hasPrefixFold(s, "volume{"):
		_, rest, _ := strings.Cut(s, "/")
		return rest
	}
	if len(s) >= 2 && s[1] == ':' && isLetter(s[0]) {
		r.abs = true
		return s[2:]
	}
	if strings.HasPrefix(s, "/") {
		r.abs = true
	}
	return s
}

// take sorts out the components. Windows drops dots and blanks at the end of a
// name; of the names that consist of nothing else only "." and ".." mean
// something.
func (r *recordedPath) take(names []string) error {
	for _, name := range names {
		trimmed := strings.TrimRight(name, ". ")
		switch {
		case name == "" || name == ".":
		case trimmed == "" && strings.TrimRight(name, " ") == "..":
			switch {
			case len(r.parts) > 0:
				r.parts = r.parts[:len(r.parts)-1]
			case !r.abs:
				r.up++
			}
		case trimmed == "":
			return Errorf(ErrUsage, 0, "component %q names nothing", name)
		default:
			r.parts = append(r.parts, trimmed)
		}
	}
	if len(r.parts) == 0 {
		return Errorf(ErrUsage, 0, "names no file")
	}
	if n := len(r.parts) + r.up; n > maxRecordedParts {
		return Errorf(ErrUsage, 0, "%d components, at most %d", n, maxRecordedParts)
	}
	return nil
}

// fromFileURL is the path of a file URL, its scheme cut off (VHD's MacX
// locator). libvhd writes relative ones as file://./p.vhd.
func fromFileURL(s string) (string, error) {
	if rest, ok := strings.CutPrefix(s, "//"); ok {
		host, path, _ := strings.Cut(rest, "/")
		switch {
		case host == "" || strings.EqualFold(host, "localhost"):
			s = "/" + path
		case host == "." || host == "..":
			s = rest
		default:
			s = "//" + rest
		}
	}
	names := strings.Split(s, "/")
	for i, name := range names {
		plain, err := url.PathUnescape(name)
		if err != nil {
			return "", err
		}
		if plain != name && strings.ContainsAny(plain, `/\`) {
			return "", Errorf(ErrUsage, 0, "escaped separator in %q", name)
		}
		names[i] = plain
	}
	s = strings.Join(names, "/")
	if len(s) >= 3 && s[0] == '/' && s[2] == ':' && isLetter(s[1]) {
		s = s[1:] // file:///C:/…
	}
	return s, nil
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// beneath is the path of abs relative to root, both clean and absolute. "." for
// root itself.
func beneath(root, abs string) (string, bool) {
	if abs == root {
		return ".", true
	}
	return strings.CutPrefix(abs, strings.TrimSuffix(root, "/")+"/")
}
