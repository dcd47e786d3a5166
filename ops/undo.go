package ops

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	iofs "io/fs"
	"path"
	"time"
)

const (
	// undoSuffix ends the name of an image's undo log in its state folder.
	undoSuffix = ".undo"
	// maxUndo is how much of an undo log is read, its end: some thousand records, or
	// the largest that there can be and those after it.
	maxUndo = 4 << 20
	// maxName is the longest name of a file on Linux, in bytes.
	maxName = 255
)

// undoLog is what an image said of itself before operations changed it: one line
// of JSON for each change, the newest last, in .vhdfs-state/NAME.undo beside the
// image. A line is durable before the change that it is about begins; a line that
// a crash cut off is about one that never began. Lines are only ever added.
type undoLog struct {
	image Ref
	named bool // its name is durable
}

// undoRecord is one line of an undo log.
type undoRecord struct {
	Time      time.Time
	Operation string        // as the table names it
	Image     string        // the host path at that time
	Before    *parentRecord `json:",omitempty"` // of set-parent
	After     *parentRecord `json:",omitempty"`
	Undoes    *time.Time    `json:",omitempty"` // Time of the record that this one puts back
	Unread    []byte        `json:",omitempty"` // what the file held where Before could not be read
	Property  string        `json:",omitempty"` // of set
	Old       string        `json:",omitempty"`
	New       string        `json:",omitempty"`
	Mends     *Anomaly      `json:",omitempty"` // of check
}

// parentRecord is what an image records of its parent.
type parentRecord struct {
	Identifiers []GUID
	Timestamp   *time.Time `json:",omitempty"` // of the parent, where the format stores it
	Paths       []ParentPath
	Error       string `json:",omitempty"` // why not all of it can be read
}

func newParentRecord(p *Parent) *parentRecord {
	r := &parentRecord{Identifiers: p.IDs, Paths: p.Paths}
	if p.Err != nil {
		r.Error = p.Err.Error()
	}
	if !p.Timestamp.IsZero() {
		t := p.Timestamp.UTC()
		r.Timestamp = &t
	}
	return r
}

// file is the name of the log, within what a name may be.
func (u *undoLog) file() string {
	name := path.Base(u.image.Name)
	if len(name)+len(undoSuffix) > maxName {
		sum := sha256.Sum256([]byte(name))
		name = name[:100] + "." + hex.EncodeToString(sum[:])
	}
	return path.Join(path.Dir(u.image.Name), StateDir, name+undoSuffix)
}

// Path is the absolute host path of the log.
func (u *undoLog) Path() string { return u.image.Dir.Path(u.file()) }

// UndoRecord is the absolute host path of what is kept to undo changes of an
// image, of a set's active disk, "" where nothing is.
func (f *Found) UndoRecord() string {
	u := &undoLog{image: f.itself().Ref}
	if _, err := u.image.Dir.Stat(u.file()); err != nil {
		return ""
	}
	return u.Path()
}

// add makes a record durable. After a crash there is
//
//	state folder, file    nothing, or an empty log
//	line, sync            the record, or a part of its line, which does not count
//	sync of both folders  the record
func (u *undoLog) add(r undoRecord) (err error) {
	r.Image = u.image.Path()
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, err := u.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	// What is cut off before it must not swallow this line.
	line = append(append([]byte{'\n'}, line...), '\n')
	if _, err := f.WriteAt(line, st.Size); err != nil {
		return err
	}
	if err := f.Sync("undo.record"); err != nil || u.named {
		return err
	}
	folder := path.Dir(u.file())
	if err := u.image.Dir.Sync(path.Dir(folder), "undo.folder"); err != nil {
		return err
	}
	if err := u.image.Dir.Sync(folder, "undo.name"); err != nil {
		return err
	}
	u.named = true
	return nil
}

// open opens the log for writing, and makes it where there is none.
func (u *undoLog) open() (File, error) {
	d, name := u.image.Dir, u.file()
	f, err := d.Open(name, Write|NoFollow)
	if !errors.Is(err, iofs.ErrNotExist) {
		return f, err
	}
	if err := d.Mkdir(path.Dir(name), stateDirPerm); err != nil && !errors.Is(err, iofs.ErrExist) {
		return nil, err
	}
	return d.Create(name, newFilePerm)
}

// records are those that can be read, the oldest first; none without a log.
func (u *undoLog) records() (_ []undoRecord, err error) {
	f, err := u.image.Dir.Open(u.file(), NoFollow)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	from := max(0, st.Size-maxUndo)
	b := make([]byte, st.Size-from)
	if n, err := f.ReadAt(b, from); err != nil && err != io.EOF {
		return nil, err
	} else {
		b = b[:n]
	}
	var list []undoRecord
	for line := range bytes.Lines(b) {
		var r undoRecord
		if json.Unmarshal(line, &r) == nil && r.Operation != "" { // the others are blank or cut off
			list = append(list, r)
		}
	}
	return list, nil
}
