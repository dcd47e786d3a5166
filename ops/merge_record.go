package ops

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	iofs "io/fs"
	"net/url"
	"path"
	"path/filepath"
	"strings"
	"time"
)

const (
	mergeSuffix = ".merge" // of a record in a state folder, after the id of the merge
	mergeMagic  = "vhdfs merge 1"
	// maxMergeRecord bounds a record in bytes: a chain of [MaxChain] files with the
	// longest paths.
	maxMergeRecord = 4 << 20
)

// mergeMark is a file beside the record in the destination's folder whose name
// says how far a merge came; it is empty.
type mergeMark string

const (
	// markMoved: the destination holds everything, and children of the source are
	// made its own. Nothing is copied any more.
	markMoved mergeMark = ".moved"
	// markEnding: the source is about to be cut off from the destination, or has
	// been. Which of both the source's own file says.
	markEnding mergeMark = ".ending"
)

// mergeRole is what a file is in a merge.
type mergeRole string

const (
	roleSource      mergeRole = "source"
	roleBetween     mergeRole = "between"
	roleDestination mergeRole = "destination"
)

// mergeRecord is the journal of one merge, in the state folder of every folder
// that holds one of its files. It is written before the first change, never
// changed, and removed at the end; the one beside the destination is made last and
// removed last, so that a merge without it has not begun, or is over.
//
// The file is a line with a checksum and JSON.
type mergeRecord struct {
	ID      GUID
	Began   time.Time
	Keep    bool
	OldID   GUID // the destination's LinkID before
	NextID  GUID // and while data moves and after; the same where the format has no other
	CutID   GUID // what the disk above the destination records as its parent in the end: no image's id
	Size    int64
	Files   []mergeFile // the source first, the destination last
	home    Ref         // the folder of the record that was read, as its state folder's parent
	primary bool        // it lies beside the destination
}

// mergeFile is one file of a merge.
type mergeFile struct {
	Role     mergeRole
	Path     hostName // from the folder of the record
	Absolute string   // host path at the beginning, for people
	Inode    uint64
	LinkID   GUID
}

// hostName is a path as JSON can hold it, whatever bytes it has.
type hostName string

func (n hostName) MarshalText() ([]byte, error) {
	parts := strings.Split(string(n), "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return []byte(strings.Join(parts, "/")), nil
}

func (n *hostName) UnmarshalText(b []byte) error {
	parts := strings.Split(string(b), "/")
	for i, p := range parts {
		plain, err := url.PathUnescape(p)
		if err != nil {
			return err
		}
		parts[i] = plain
	}
	*n = hostName(strings.Join(parts, "/"))
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// in is the record as it is to lie beside files of the folder.
func (r *mergeRecord) in(folder Ref) (*mergeRecord, error) {
	own := *r
	own.home = folder
	own.Files = make([]mergeFile, len(r.Files))
	for i, f := range r.Files {
		rel, err := filepath.Rel(folder.Path(), f.Absolute)
		if err != nil {
			return nil, err
		}
		f.Path = hostName(rel)
		own.Files[i] = f
	}
	own.primary = path.Dir(r.destination().Absolute) == folder.Path()
	return &own, nil
}

func (r *mergeRecord) source() *mergeFile      { return &r.Files[0] }
func (r *mergeRecord) destination() *mergeFile { return &r.Files[len(r.Files)-1] }

// path is where a file of the merge lies, seen from the record.
func (r *mergeRecord) path(f *mergeFile) string { return path.Join(r.home.Path(), string(f.Path)) }

// name of a file of the journal, in the folder of home.
func (r *mergeRecord) name(suffix string) string {
	return path.Join(r.home.Name, StateDir, r.ID.String()+suffix)
}

func (r *mergeRecord) encode() ([]byte, error) {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, err
	}
	b = append([]byte(fmt.Sprintf("%s %08x\n", mergeMagic, crc32.Checksum(b, castagnoli))), b...)
	if len(b) > maxMergeRecord {
		return nil, Errorf(ErrUsage, 0, "a record of %d bytes, at most %d", len(b), maxMergeRecord)
	}
	return b, nil
}

func decodeMergeRecord(b []byte) (*mergeRecord, error) {
	head, body, _ := bytes.Cut(b, []byte("\n"))
	if want := fmt.Sprintf("%s %08x", mergeMagic, crc32.Checksum(body, castagnoli)); string(head) != want {
		return nil, Corruptf(0, "begins with %.40q, want %q", head, want)
	}
	r := &mergeRecord{}
	if err := json.Unmarshal(body, r); err != nil {
		return nil, Corruptf(0, "%v", err)
	}
	return r, r.validate()
}

func (r *mergeRecord) validate() error {
	if n := len(r.Files); n < 2 || n > MaxChain {
		return Corruptf(0, "%d files, want 2 to %d", n, MaxChain)
	}
	for i, f := range r.Files {
		want := roleBetween
		switch i {
		case 0:
			want = roleSource
		case len(r.Files) - 1:
			want = roleDestination
		}
		if f.Role != want || f.Path == "" || path.IsAbs(string(f.Path)) {
			return Corruptf(0, "file %d: %q as %q, want a relative path as %q", i, f.Path, f.Role, want)
		}
	}
	if r.ID.IsZero() || r.OldID.IsZero() || r.NextID.IsZero() || r.CutID.IsZero() || r.CutID == r.NextID {
		return Corruptf(0, "ids %s, %s, %s, %s", r.ID, r.OldID, r.NextID, r.CutID)
	}
	return nil
}

// readMergeRecord reads a record of a folder.
func readMergeRecord(folder Ref, base string) (_ *mergeRecord, err error) {
	name := path.Join(folder.Name, StateDir, base)
	f, err := folder.Dir.Open(name, Read|NoFollow)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b := make([]byte, min(st.Size, maxMergeRecord+1))
	if n, err := f.ReadAt(b, 0); n < len(b) && err != nil && err != io.EOF {
		return nil, err
	}
	r, err := decodeMergeRecord(b)
	if err == nil && r.ID.String()+mergeSuffix != base {
		err = Corruptf(0, "has the id %s", r.ID)
	}
	if err != nil {
		return nil, fmt.Errorf("merge record %s: %w", folder.Dir.Path(name), err)
	}
	r.home = folder
	r.primary = path.Dir(string(r.destination().Path)) == "."
	return r, nil
}

// folderOf is the folder of a file.
func folderOf(r Ref) Ref { return Ref{Dir: r.Dir, Name: path.Dir(r.Name)} }

// mergeRecords are those of a folder. A state folder that the user may not look
// into holds none for him.
func mergeRecords(folder Ref) ([]*mergeRecord, error) {
	list, err := folder.Dir.List(path.Join(folder.Name, StateDir))
	if skip(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []*mergeRecord
	for _, e := range list {
		if !e.IsRegular || !strings.HasSuffix(e.Name, mergeSuffix) {
			continue
		}
		r, err := readMergeRecord(folder, e.Name)
		if errors.Is(err, iofs.ErrPermission) || errors.Is(err, iofs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}
