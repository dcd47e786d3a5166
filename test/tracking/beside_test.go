package tracking_test

import (
	"encoding/binary"
	"errors"
	"sync/atomic"
	"time"

	"vhdfs/test/sim"
)

// moment is how long somebody waits for what comes beside him, which may have to wait
// for him.
const moment = 20 * time.Millisecond

// beside is something that comes in the middle of something else.
type beside struct {
	do    func() error
	came  atomic.Bool
	early atomic.Bool // it had ended when the other went on
	ended chan error
}

func newBeside(do func() error) *beside { return &beside{do: do, ended: make(chan error, 1)} }

// come is called where it may come; it does so once.
func (b *beside) come() {
	if !b.came.CompareAndSwap(false, true) {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.ended <- b.do()
	}()
	select {
	case <-done:
		b.early.Store(true)
	case <-time.After(moment):
	}
}

// wait is for its end, if it came.
func (b *beside) wait() error {
	if !b.came.Load() {
		return nil
	}
	return <-b.ended
}

// inSync lets f come before a sync that do asks for happens.
func (w *workload) inSync(label string, do, f func() error) error {
	b := newBeside(f)
	w.host.SetFault(func(c sim.Call) error {
		if w.hook != nil {
			w.hook(w, c)
		}
		if c.Op == sim.OpSync && c.Label == label {
			b.come()
		}
		return nil
	})
	err := errors.Join(do(), b.wait())
	w.host.SetFault(nil)
	return err
}

// put is write for who comes beside another: of whole sectors, which wait for none.
func (w *workload) put(i int64, v uint64) func() error {
	w.refs[i] = true
	b := make([]byte, 4096)
	binary.LittleEndian.PutUint64(b, v)
	return func() error {
		_, err := w.disk.WriteAt(b, i*granule)
		return err
	}
}

// two writes one granule, and its neighbour while the region of both is opened.
func (w *workload) two(i int64) error {
	w.value++
	if err := w.open(); err != nil {
		return err
	}
	return w.inSync("track.open", w.put(i, w.value), w.put(i+1, w.value))
}

// settles writes a granule, and its neighbour while the pages have been written and
// the regions are not closed.
func (w *workload) settles(i int64) error {
	w.value++
	if err := w.write(i, w.value); err != nil {
		return err
	}
	return w.inSync("track.pages", func() error { return w.spy.settle(true) }, w.put(i+1, w.value))
}

// drains asks for an id while a write is under way, which is marked and not stored.
// What the id stands for is the content before that, if it is given first.
func (w *workload) drains(i int64) error {
	w.value++
	if err := errors.Join(w.open(), w.write(i, w.value-1)); err != nil {
		return err
	}
	before, err := w.content(w.name)
	if err != nil {
		return err
	}
	id := ""
	b := newBeside(func() (err error) {
		if id, err = w.ask(); err == nil {
			w.host.Ack("id", id)
		}
		return err
	})
	w.spy.marked = b.come
	err = errors.Join(w.put(i, w.value)(), b.wait())
	w.spy.marked = nil
	if err != nil || id == "" {
		return err
	}
	w.was[id] = before
	if !b.early.Load() {
		w.was[id], err = w.content(w.name)
	}
	return err
}

// ask gets an id.
func (w *workload) ask() (string, error) {
	if w.undrained {
		return w.spy.live[len(w.spy.live)-1].Seal(time.Now(), [16]byte{}, nil)
	}
	a, err := w.do("tracking", w.name, "new")
	if err != nil {
		return "", err
	}
	return a["ResilientChangeTrackingId"].(string), nil
}
