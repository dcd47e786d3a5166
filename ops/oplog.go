package ops

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	iofs "io/fs"
	"sync"
	"syscall"
	"time"
)

// The log in the state folder of the image folder: two files, so that it can be
// bounded.
const (
	logName    = StateDir + "/log"
	oldLogName = StateDir + "/log.1" // what was there before

	maxLogFile = 512 << 10
	maxLogLine = 64 << 10 // more than the longest line has
	maxLogText = 1024     // bytes of a request, an error or a note that a line shows
	maxPending = 256      // lines that are held in memory
	logLock    = time.Second
	logPoll    = 10 * time.Millisecond
)

// LogLine is one operation as the log shows it: when, who, what, with what result;
// or a note of what one is about to do. JSON quotes whatever the strings hold, so
// that it is one line.
type LogLine struct {
	Time        time.Time // of the request
	User        uint32
	Process     uint32
	Job         int64 `json:",omitempty,string"`
	Operation   string
	Image       string `json:",omitempty"`
	Request     string
	Note        string  `json:",omitempty"`
	ReturnValue *uint32 `json:",omitempty"` // none in a note
	Error       string  `json:",omitempty"`
	Seconds     float64
}

// NewLogLine is the line of a request that began and has been answered.
func NewLogLine(began time.Time, who Caller, image, text string, a Answer) LogLine {
	value := a.ReturnValue()
	return LogLine{
		Time: began, User: who.User, Process: who.Process, Job: a.Job,
		Operation: a.Operation, Image: image, Request: text,
		ReturnValue: &value, Error: a.Sentence(), Seconds: time.Since(began).Seconds(),
	}
}

// OpLog is the log of the operations on the images of a folder. It is kept in the
// folder, by all programs that work there, from the first operation on that changes
// something; until then, and where it cannot be written, lines are kept in memory.
// Safe for concurrent use.
type OpLog struct {
	dir      Dir
	readOnly bool
	mu       struct {
		sync.Mutex
		pending [][]byte // lines that are not in the file, oldest first
	}
}

// NewOpLog is the log of the folder d. With readOnly the folder is left as it is.
func NewOpLog(d Dir, readOnly bool) *OpLog { return &OpLog{dir: d, readOnly: readOnly} }

// Add appends a line. With changed the log is made where there is none, and an error
// says why it is not; who only read may have no right to write there. What could not
// be written is kept in memory, and written with the next line.
func (l *OpLog) Add(line LogLine, changed bool) error {
	b, err := line.encode()
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.pending = append(l.mu.pending, b)
	if extra := len(l.mu.pending) - maxPending; extra > 0 {
		l.mu.pending = l.mu.pending[extra:]
	}
	if l.readOnly {
		return nil
	}
	if !changed {
		if _, err := l.dir.Stat(logName); errors.Is(err, iofs.ErrNotExist) {
			return nil
		}
	}
	err = l.writeLocked()
	if !changed && (errors.Is(err, iofs.ErrPermission) || errors.Is(err, syscall.EROFS)) {
		return nil
	}
	return err
}

func (line LogLine) encode() ([]byte, error) {
	for _, text := range []*string{&line.Request, &line.Note, &line.Error} {
		if len(*text) > maxLogText {
			*text = (*text)[:maxLogText] + "…"
		}
	}
	b, err := json.Marshal(line)
	return append(b, '\n'), err
}

// writeLocked appends the pending lines.
func (l *OpLog) writeLocked() error {
	f, err := l.openLocked()
	if err != nil {
		return err
	}
	for err == nil && len(l.mu.pending) > 0 {
		if err = appendLine(f, l.mu.pending[0]); errors.Is(err, errLogFull) {
			err = errors.Join(l.rotateLocked(), f.Close())
			if err == nil {
				f, err = l.openLocked()
			}
			if err != nil {
				return err
			}
			continue
		}
		if err == nil {
			l.mu.pending = l.mu.pending[1:]
		}
	}
	return errors.Join(err, f.Close())
}

// errLogFull says that a line does not fit.
var errLogFull = errors.New("the log is full")

// appendLine makes a line durable. All lines before it are, so that a crash tears
// this one only:
//
//	cut       what a crash left of a line is gone, or not
//	write     the line is there, or a part of it; then, maybe, what was not cut
//	sync      the line is there
//
// What was not cut is no line by itself: the next one is written over it.
func appendLine(f File, line []byte) error {
	end, size, err := wholeLines(f)
	switch {
	case err != nil:
		return err
	case size > 0 && max(end, size)+int64(len(line)) > maxLogFile:
		return errLogFull
	case end < size:
		if err := f.Truncate(end, "log.tail"); err != nil {
			return err
		}
	}
	if _, err := f.WriteAt(line, end); err != nil {
		return err
	}
	return f.Sync("log.line")
}

// openLocked opens the log, and makes it where there is none. It holds the lock of
// the file that has the name then: another program may have moved that away.
func (l *OpLog) openLocked() (File, error) {
	for late := time.Now().Add(logLock); ; time.Sleep(logPoll) {
		f, err := l.dir.Open(logName, Write|NoFollow)
		if errors.Is(err, iofs.ErrNotExist) {
			f, err = l.makeLocked()
		}
		if err == nil {
			if err = l.ownLocked(f); err == nil {
				return f, nil
			}
			err = errors.Join(err, f.Close())
		}
		again := errors.Is(err, ErrBusy) || errors.Is(err, iofs.ErrNotExist) || errors.Is(err, iofs.ErrExist)
		if !again || time.Now().After(late) {
			return nil, err
		}
	}
}

func (l *OpLog) makeLocked() (File, error) {
	if err := l.dir.Mkdir(StateDir, stateDirPerm); err != nil && !errors.Is(err, iofs.ErrExist) {
		return nil, err
	}
	if err := l.dir.Sync(".", "log.folder"); err != nil {
		return nil, err
	}
	f, err := l.dir.Create(logName, newFilePerm)
	if err != nil {
		return nil, err
	}
	if err := l.dir.Sync(StateDir, "log.name"); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// ownLocked locks the log's file, if it still is that.
func (l *OpLog) ownLocked(f File) error {
	if err := f.Lock(true); err != nil && !noLocks(err) {
		return err
	}
	named, err := l.dir.Stat(logName)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil && st.ID != named.ID {
		err = Errorf(ErrBusy, 0, "%s was moved away", l.dir.Path(logName))
	}
	return err
}

// rotateLocked gives the log its other name, in place of the one before. After a
// crash what was written is under one of both.
func (l *OpLog) rotateLocked() error {
	if err := l.dir.Remove(oldLogName); err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	if err := l.dir.Rename(logName, oldLogName); err != nil {
		return err
	}
	return l.dir.Sync(StateDir, "log.rotate")
}

// wholeLines is where the last line ends that is whole, and where the file does. A
// file without a line in its last part is nobody's log: all of it counts, and none
// where it is short.
func wholeLines(f File) (end, size int64, err error) {
	st, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	from := max(0, st.Size-2*maxLogLine)
	b := make([]byte, st.Size-from)
	n, err := f.ReadAt(b, from)
	if err != nil && err != io.EOF {
		return 0, 0, err
	}
	for b = b[:n]; len(b) > 0; {
		b = b[:bytes.LastIndexByte(b, '\n')+1]
		line := b[bytes.LastIndexByte(b[:max(len(b)-1, 0)], '\n')+1:]
		if json.Valid(line) {
			return from + int64(len(b)), st.Size, nil
		}
		b = b[:len(b)-len(line)]
	}
	if from > 0 {
		return st.Size, st.Size, nil
	}
	return 0, st.Size, nil
}

// Render writes the lines, newest last.
func (l *OpLog) Render(w io.Writer) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range []string{oldLogName, logName} {
		if err := l.copyLocked(w, name); err != nil {
			return err
		}
	}
	_, err := w.Write(bytes.Join(l.mu.pending, nil))
	return err
}

func (l *OpLog) copyLocked(w io.Writer, name string) error {
	f, err := l.dir.Open(name, NoFollow)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	end, _, err := wholeLines(f)
	if err == nil {
		_, err = io.Copy(w, io.NewSectionReader(f, 0, end))
	}
	return errors.Join(err, f.Close())
}
