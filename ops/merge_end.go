package ops

import (
	"errors"
	"slices"
)

// mergeEnd is the last part of a merge: the destination is what the source was,
// the other files are dead and go.
type mergeEnd struct {
	lib     *Library
	rec     *mergeRecord
	files   []Ref // as in the record
	journal mergeJournal
	removed []string
}

// resumeEnd takes up the end of a merge that was broken off.
func (l *Library) resumeEnd(rec *mergeRecord, own Dir) (*mergeEnd, error) {
	files, err := l.mergeFiles(rec, own)
	if err != nil {
		return nil, err
	}
	n := &mergeEnd{lib: l, rec: rec, files: files}
	if err := n.journal.resume(rec, files); err != nil {
		return nil, errors.Join(err, n.journal.close())
	}
	return n, nil
}

// mergeFiles are the files of a record, which all have to lie in folders of the
// library.
func (l *Library) mergeFiles(rec *mergeRecord, own Dir) ([]Ref, error) {
	files := make([]Ref, len(rec.Files))
	for i := range rec.Files {
		host, ok := rec.path(&rec.Files[i]), false
		if files[i], ok = l.refAt(host, own); !ok {
			return nil, Errorf(ErrForbidden, 0, "%s, which is part of the merge of %s: outside of the folders that are open here", host, rec.path(rec.source()))
		}
	}
	return files, nil
}

// run removes the dead files, the source first, then the journal. After a crash
// there is
//
//	remove files     some of them, and the journal
//	sync folders     the destination, and the journal
//	remove journal   the destination
//
// Files that are to be kept stay, cut off from the destination.
func (n *mergeEnd) run() error {
	if !n.rec.Keep {
		for i := range n.files[:len(n.files)-1] {
			if err := n.remove(&n.rec.Files[i], n.files[i]); err != nil {
				return err
			}
		}
		for _, folder := range mergeFolders(n.files) {
			if err := folder.Dir.Sync(folder.Name, "merge.remove"); err != nil {
				return err
			}
		}
	}
	return n.journal.forget()
}

// remove removes a dead file. It has to be the one that the merge was about, and
// its own folder has to know of that.
func (n *mergeEnd) remove(f *mergeFile, ref Ref) error {
	found, err := n.lib.inspect(ref, Read|NoFollow, false)
	if absent(err) {
		return n.lib.tracking().Remove(ref)
	}
	if err != nil {
		return err
	}
	same := found.Stat.ID.Ino == f.Inode || found.Err == nil && found.Info.LinkID == f.LinkID
	known := slices.ContainsFunc(n.journal.records, func(r *mergeRecord) bool { return r.home.Path() == folderOf(ref).Path() })
	if !same || !known {
		return Errorf(ErrChanged, 0, "%s is not removed: it is not the file that was merged into %s; remove %s when it is not needed any more",
			ref.Path(), n.files[len(n.files)-1].Path(), n.recordPath())
	}
	if err := ref.Dir.Remove(ref.Name); err != nil {
		return err
	}
	n.removed = append(n.removed, ref.Path())
	return n.lib.tracking().Remove(ref)
}

func (n *mergeEnd) recordPath() string {
	r := n.rec
	return r.home.Dir.Path(r.name(mergeSuffix))
}

// endEmptyMerge removes the journal of a merge of which nothing else is left, and
// refuses where something is.
func (l *Library) endEmptyMerge(p *PendingMerge) error {
	files, err := l.mergeFiles(p.record, p.record.home.Dir)
	if err != nil {
		return err
	}
	for _, f := range files[:len(files)-1] {
		if p.record.Keep {
			break
		}
		if _, err := f.Dir.Stat(f.Name); !absent(err) {
			return errors.Join(err, p.refusal(p.Destination))
		}
	}
	n, err := l.resumeEnd(p.record, p.record.home.Dir)
	if err != nil {
		return err
	}
	return errors.Join(n.run(), n.journal.close())
}
