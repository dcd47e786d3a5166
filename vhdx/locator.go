package vhdx

import (
	"slices"
	"strings"
	"unicode/utf16"

	"vhdfs/ops"
)

var locatorType = mustGUID("b04aefb7-d19e-4a81-b789-25b8e9445913")

const locatorHeader = 20 // bytes before the first key and value entry

// Keys of a parent locator ([MS-VHDX] 2.6.2.6.3).
const (
	keyLinkage  = "parent_linkage"
	keyLinkage2 = "parent_linkage2"
	keyRelative = "relative_path"
	keyVolume   = "volume_path"
	keyAbsolute = "absolute_win32_path"
)

// locator is a parent locator: its pairs as stored, in order.
type locator []keyValue

type keyValue struct{ key, value string }

func (l locator) get(key string) (string, bool) {
	for _, kv := range l {
		if kv.key == key {
			return kv.value, true
		}
	}
	return "", false
}

// decodeLocator reads an item ([MS-VHDX] 2.6.2.6). Keys are unique and not empty;
// strings lie behind the entries and do not overlap. With an error come the pairs
// before the first that is wrong.
func decodeLocator(b []byte) (locator, error) {
	if len(b) < locatorHeader {
		return nil, corruptf(ops.StatusMetadataRead, "parent locator: %d bytes, want %d or more", len(b), locatorHeader)
	}
	if id := ops.GUIDFromLE(b); id != locatorType {
		return nil, corruptf(ops.StatusVersionUnsupported, "parent locator: type %s is not known", id)
	}
	count := int(le.Uint16(b[18:]))
	table := locatorHeader + 12*count
	if table > len(b) {
		return nil, corruptf(ops.StatusMetadataRead, "parent locator: %d entries in %d bytes", count, len(b))
	}
	var l locator
	var spans []span
	seen := map[string]bool{}
	room := maxItem // for what strings that overlap say, too
	for i := range count {
		e := b[locatorHeader+12*i:]
		if room -= int64(le.Uint16(e[8:])) + int64(le.Uint16(e[10:])); room < 0 {
			return l, corruptf(ops.StatusMetadataRead, "parent locator entry %d: the strings up to here have more than %d bytes", i, maxItem)
		}
		key, err := locatorString(b, table, le.Uint32(e), le.Uint16(e[8:]), &spans)
		if err != nil {
			return l, corruptf(ops.StatusMetadataRead, "parent locator entry %d: key %s", i, err)
		}
		value, err := locatorString(b, table, le.Uint32(e[4:]), le.Uint16(e[10:]), &spans)
		if err != nil {
			return l, corruptf(ops.StatusMetadataRead, "parent locator entry %d: value %s", i, err)
		}
		if key == "" || seen[key] {
			return l, corruptf(ops.StatusMetadataRead, "parent locator entry %d: key %.64q is empty or there twice", i, key)
		}
		seen[key] = true
		l = append(l, keyValue{key, value})
	}
	slices.SortFunc(spans, func(a, b span) int { return int(a.off - b.off) })
	for i := 1; i < len(spans); i++ {
		if spans[i].overlaps(spans[i-1]) {
			return nil, corruptf(ops.StatusMetadataRead, "parent locator: string at %#x overlaps string at %#x", spans[i].off, spans[i-1].off)
		}
	}
	return l, nil
}

// reason is a sentence part that decodeLocator completes.
type reason string

func (r reason) Error() string { return string(r) }

func locatorString(b []byte, table int, off uint32, n uint16, spans *[]span) (string, error) {
	if n == 0 {
		return "", nil // some writers leave a path empty; an empty key is refused above
	}
	s := span{int64(off), int64(off) + int64(n)}
	if s.off < int64(table) || s.end > int64(len(b)) {
		return "", reason("lies outside the item")
	}
	if n%2 != 0 {
		return "", reason("has an odd number of bytes")
	}
	*spans = append(*spans, s)
	units := make([]uint16, n/2)
	for i := range units {
		units[i] = le.Uint16(b[s.off+2*int64(i):])
	}
	text := string(utf16.Decode(units))
	if strings.ContainsRune(text, 0) {
		return "", reason("holds a NUL")
	}
	if !slices.Equal(utf16.Encode([]rune(text)), units) {
		return "", reason("is not UTF-16")
	}
	return text, nil
}

// encode is the item as it stands in the file.
func (l locator) encode() []byte {
	b := make([]byte, locatorHeader+12*len(l))
	locatorType.PutLE(b)
	le.PutUint16(b[18:], uint16(len(l)))
	for i, kv := range l {
		key, value := encodeUTF16(kv.key), encodeUTF16(kv.value)
		e := b[locatorHeader+12*i:]
		le.PutUint32(e, uint32(len(b)))
		le.PutUint32(e[4:], uint32(len(b)+len(key)))
		le.PutUint16(e[8:], uint16(len(key)))
		le.PutUint16(e[10:], uint16(len(value)))
		b = append(append(b, key...), value...)
	}
	return b
}

func encodeUTF16(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = le.AppendUint16(b, u)
	}
	return b
}

// parent is what the locator says in the terms of package ops.
func (l locator) parent() *ops.Parent {
	p := &ops.Parent{}
	p.IDs, p.Err = l.linkage()
	for _, path := range []struct {
		key  string
		kind ops.PathKind
	}{{keyRelative, ops.PathRelative}, {keyAbsolute, ops.PathAbsolute}, {keyVolume, ops.PathVolume}} {
		if v, _ := l.get(path.key); v != "" {
			p.Paths = append(p.Paths, ops.ParentPath{Kind: path.kind, Path: v})
		}
	}
	return p
}

// linkage is the recorded ids, with an error those that can be read. A non-zero
// parent_linkage2 is the id that the parent is about to get from a merge.
func (l locator) linkage() (ids []ops.GUID, err error) {
	for _, key := range []string{keyLinkage, keyLinkage2} {
		text, ok := l.get(key)
		if !ok && key == keyLinkage {
			return nil, corruptf(ops.StatusMetadataRead, "parent locator: no %s", key)
		}
		if !ok {
			break
		}
		id, err := ops.ParseGUID(text)
		if err != nil {
			return ids, corruptf(ops.StatusMetadataRead, "parent locator: %s %.64q is not a GUID", key, text)
		}
		if key == keyLinkage || !id.IsZero() && id != ids[0] {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
