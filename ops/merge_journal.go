package ops

import (
	"errors"
	iofs "io/fs"
	"path"
	"slices"
	"strings"
)

// mergeJournal is what lies on the host about a merge while it runs: a record in
// the state folder of each folder that holds one of its files, locked, and marks
// beside the destination's.
type mergeJournal struct {
	records []*mergeRecord // the one beside the destination last
	held    []File
}

// mergeFolders are those of the files of a merge, the destination's last.
func mergeFolders(files []Ref) []Ref {
	home := folderOf(files[len(files)-1])
	var list []Ref
	for _, f := range files {
		at := folderOf(f)
		if !slices.ContainsFunc(append(list, home), func(o Ref) bool { return o.Path() == at.Path() }) {
			list = append(list, at)
		}
	}
	return append(list, home)
}

// begin writes the journal, durably. After a crash there is
//
//	records beside others   records without one beside the destination: not begun
//	record at home          a merge that has begun, and changed nothing so far
//
// An error removes what was made.
func (j *mergeJournal) begin(r *mergeRecord, files []Ref) error {
	for _, folder := range mergeFolders(files) {
		own, err := r.in(folder)
		if err == nil {
			err = j.add(own)
		}
		if err != nil {
			return errors.Join(err, j.forget())
		}
	}
	return nil
}

// add makes one record: whole and durable under a temporary name, then durable
// under its own, in a folder that is durable.
func (j *mergeJournal) add(r *mergeRecord) error {
	b, err := r.encode()
	if err != nil {
		return err
	}
	temp, f, err := newTemporary(r.home.Dir, r.home.Name)
	if err != nil {
		return err
	}
	j.held, j.records = append(j.held, f), append(j.records, r)
	d, state := r.home.Dir, path.Join(r.home.Name, StateDir)
	label := "merge.record"
	if !r.primary {
		label = "merge.record.beside"
	}
	err = d.Sync(r.home.Name, label+".folder") // who made it may not have waited for that
	if err == nil {
		_, err = f.WriteAt(b, 0)
	}
	if err == nil {
		err = f.Sync(label)
	}
	if err == nil {
		err = d.Rename(temp, r.name(mergeSuffix))
	}
	if err != nil {
		return errors.Join(err, d.Remove(temp))
	}
	return d.Sync(state, label+".name")
}

// resume locks the records of a merge that goes on, r and those in the folders of
// its other files; some may be gone when the end of the merge was broken off.
func (j *mergeJournal) resume(r *mergeRecord, files []Ref) error {
	for _, folder := range mergeFolders(files) {
		own, err := readMergeRecord(folder, r.ID.String()+mergeSuffix)
		if errors.Is(err, iofs.ErrNotExist) && folder.Path() != folderOf(files[len(files)-1]).Path() {
			continue
		}
		if err != nil {
			return err
		}
		f, err := folder.Dir.Open(own.name(mergeSuffix), Write|NoFollow)
		if err != nil {
			return err
		}
		j.held = append(j.held, f)
		if err := f.Lock(true); err != nil {
			return err
		}
		j.records = append(j.records, own)
	}
	return nil
}

// close gives the locks back.
func (j *mergeJournal) close() error {
	var err error
	for _, f := range j.held {
		err = errors.Join(err, f.Close())
	}
	j.held = nil
	return err
}

// mark makes it durable that the merge came so far.
func (j *mergeJournal) mark(k mergeMark) error {
	r := j.records[len(j.records)-1]
	f, err := r.home.Dir.Create(r.name(string(k)), newFilePerm)
	if errors.Is(err, iofs.ErrExist) { // by who was here before, who may not have made it durable
		err = nil
	} else if err == nil {
		err = f.Close()
	}
	if err != nil {
		return err
	}
	return r.home.Dir.Sync(path.Join(r.home.Name, StateDir), "merge"+string(k))
}

// forget removes the journal. The record beside the destination goes before the
// marks that it would be read with, durably.
func (j *mergeJournal) forget() error {
	for _, r := range j.records {
		if err := r.remove(); err != nil {
			return err
		}
	}
	j.records = nil
	return nil
}

// remove removes one record, of the destination's folder with its marks, and the
// state folder if nothing else is in it.
func (r *mergeRecord) remove() error {
	d, state := r.home.Dir, path.Join(r.home.Name, StateDir)
	if err := removeAny(d, r.name(mergeSuffix)); err != nil {
		return err
	}
	if err := d.Sync(state, "merge.forget"); err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	if r.primary {
		for _, k := range []mergeMark{markMoved, markEnding} {
			if err := removeAny(d, r.name(string(k))); err != nil {
				return err
			}
		}
	}
	return removeIfEmpty(d, state)
}

// removeAny removes a file that may be gone.
func removeAny(d Dir, name string) error {
	if err := d.Remove(name); err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	return nil
}

// sweepMerges removes what merges that never began, or are over, left in a folder:
// records without the one beside their destination, marks without a record. What
// somebody has locked is in use.
func (l *Library) sweepMerges(folder Ref) error {
	d, state := folder.Dir, path.Join(folder.Name, StateDir)
	list, err := d.List(state)
	if skip(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range list {
		old, err := l.isLeft(folder, e.Name)
		if err == nil && old {
			err = removeUnlocked(d, path.Join(state, e.Name))
		}
		if err != nil {
			return err
		}
	}
	return removeIfEmpty(d, state)
}

// isLeft tells whether a file of a state folder is of a merge and means nothing.
func (l *Library) isLeft(folder Ref, base string) (bool, error) {
	for _, k := range []mergeMark{markMoved, markEnding} {
		if id, ok := strings.CutSuffix(base, string(k)); ok {
			_, err := folder.Dir.Stat(path.Join(folder.Name, StateDir, id+mergeSuffix))
			return errors.Is(err, iofs.ErrNotExist), nil
		}
	}
	if !strings.HasSuffix(base, mergeSuffix) {
		return false, nil
	}
	r, err := readMergeRecord(folder, base)
	if err != nil {
		return false, err
	}
	state, err := l.stateOf(r, folder.Dir)
	return state == mergeVoid, err
}

// removeUnlocked removes a file unless somebody has locked it.
func removeUnlocked(d Dir, name string) error {
	f, err := d.Open(name, Write|NoFollow)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	err = f.Lock(true)
	if err == nil {
		err = d.Remove(name)
	} else if errors.Is(err, ErrBusy) {
		err = nil
	}
	return errors.Join(err, f.Close())
}
