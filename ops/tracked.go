package ops

import (
	"errors"
	"sync"
	"time"
)

// settleEvery is how often what is known of a disk that is written gets into its
// tracking file, so that a crash makes little more of it.
const settleEvery = 5 * time.Second

// tracked is the tracking file of an engine that is open for writing.
type tracked struct {
	Tracker
	once    sync.Once // starts settling
	stop    chan struct{}
	settled chan struct{} // closed when settling has ended
}

// identity is how a tracking file knows the disk of a layer; open for writing with
// a session, or not. False where the format has no tracking.
func identity(l Layer, writing bool) (TrackedDisk, bool) {
	s, ok := l.(Stamped)
	if !ok {
		return TrackedDisk{}, false
	}
	info := l.Info()
	dirty := writing || info.Log != LogNone && info.Log != LogClean
	return TrackedDisk{Size: l.Size(), DiskID: info.DiskID, LinkID: info.LinkID, Stamp: s.Stamp(), Dirty: dirty}, true
}

// identity is that of the disk as it is now.
func (e *Engine) identity() (TrackedDisk, bool) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.identityLocked()
}

func (e *Engine) identityLocked() (TrackedDisk, bool) {
	return identity(e.mu.layer, e.mu.writer != nil)
}

// openTracking opens the tracking file of an image, which is about to be written by
// way of w, where there is one.
func (e *Engine) openTracking(r Ref, w Layer, dirty bool) error {
	d, ok := identity(w, dirty)
	if !ok {
		return nil
	}
	t, err := e.lib.tracking().Open(r, d, true)
	if err != nil || t == nil {
		return err
	}
	e.startTracking(t)
	return nil
}

func (e *Engine) startTracking(t Tracker) {
	e.tracked.Store(&tracked{Tracker: t, stop: make(chan struct{}), settled: make(chan struct{})})
}

// settle writes out what is known, from time to time.
func (t *tracked) settle() {
	defer close(t.settled)
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	for {
		select {
		case <-t.stop:
			return
		case <-tick.C:
			_ = t.Settle(false) // what fails for good is told to who writes next
		}
	}
}

// end waits until nobody settles any more.
func (t *tracked) end() {
	close(t.stop)
	t.once.Do(func() { close(t.settled) })
	<-t.settled
}

// begin comes before the first change of content, which w is to make.
func (t *tracked) begin(w Writer) error {
	if t.Begun() {
		return nil
	}
	setter, ok := w.(LinkSetter)
	if !ok {
		return Errorf(errors.ErrUnsupported, StatusWrongType, "an image of this format cannot be tracked")
	}
	t.once.Do(func() { go t.settle() })
	return t.Begin(w.Info().LinkID, setter.SetLinkID)
}

// markLocked comes before a change of [off, off+n): see [Tracker.Write].
func (l layers) markLocked(off, n int64) error {
	t := l[0].tracked.Load()
	if t == nil || n == 0 {
		return nil
	}
	if err := t.begin(l[0].mu.writer); err != nil {
		return err
	}
	return t.Write(off, n)
}

// loosen comes before a change of the image that no guest can see.
func (e *Engine) loosen() error {
	if t := e.tracked.Load(); t != nil {
		return t.Loosen()
	}
	return nil
}

// trackResize runs do, which gives the disk another size by way of w.
func (e *Engine) trackResize(w Writer, size int64, do func() error) error {
	t := e.tracked.Load()
	if t == nil {
		return do()
	}
	if err := t.begin(w); err != nil {
		return err
	}
	if err := t.Loosen(); err != nil {
		return err
	}
	return t.Resize(size, do)
}

// suspendLocked comes before the write session ends.
func (e *Engine) suspendLocked() error {
	t := e.tracked.Load()
	if t == nil {
		return nil
	}
	t.end()
	if e.poison.Load() != nil {
		return nil // every region that was written is open: the next one takes all of it as changed
	}
	return t.Suspend(e.mu.layer.(Stamped).Stamp())
}

// resumeLocked comes when the write session has ended, with the layer as it is read
// then, or nil when it did not end cleanly.
func (e *Engine) resumeLocked(l Layer) error {
	t := e.tracked.Swap(nil)
	if t == nil {
		return nil
	}
	var err error
	if l != nil && e.poison.Load() == nil {
		d, _ := identity(l, false)
		err = t.Resume(d)
	}
	return errors.Join(err, t.Close())
}

// closeLayer ends the write session of an engine that is closed for good.
//
//	suspend    the tracking file is true whether the session ends cleanly or not
//	close      the disk is whole
//	resume     the tracking file knows the disk as it is now
func (e *Engine) closeLayerLocked() error {
	if e.tracked.Load() == nil {
		return e.mu.layer.Close()
	}
	err := e.suspendLocked()
	closeErr := e.mu.layer.Close()
	if closeErr != nil {
		return errors.Join(err, closeErr, e.resumeLocked(nil))
	}
	l, openErr := e.newLayer(heldFile{e.file}, OpenOptions{})
	if openErr != nil {
		return errors.Join(err, openErr, e.resumeLocked(nil))
	}
	return errors.Join(err, e.resumeLocked(l), l.Close())
}

// endTracking gives the tracking file back.
func (e *Engine) endTracking() error {
	t := e.tracked.Swap(nil)
	if t == nil {
		return nil
	}
	t.end()
	return t.Close()
}

// dropTracking ends tracking of an image: what it is to hold is known elsewhere, or
// by nobody.
func (e *Engine) dropTracking() error {
	err := e.endTracking()
	if _, ok := e.identity(); !ok {
		return err
	}
	return errors.Join(err, e.lib.tracking().Remove(e.ref))
}

// inheritTracking gives the image to, which reads as e does, what is known of e; e is
// frozen from then on, or is to be. Nothing where that is not tracked.
func (e *Engine) inheritTracking(to Ref, is TrackedDisk) error {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.inheritTrackingLocked(to, is)
}

func (e *Engine) inheritTrackingLocked(to Ref, is TrackedDisk) error {
	was, ok := e.identityLocked()
	if !ok {
		return nil
	}
	if t := e.tracked.Load(); t != nil {
		if err := t.Suspend(was.Stamp); err != nil {
			return err
		}
	}
	return e.lib.tracking().Inherit(e.ref, was, to, is)
}

// inheritTrackingNew is inheritTracking to a file that nobody has open yet.
func (e *Engine) inheritTrackingNew(to Ref) error {
	was, ok := e.identity()
	if !ok {
		return nil
	}
	t, err := e.lib.tracking().Open(e.ref, was, false)
	if t == nil || err != nil {
		return err
	}
	if err := t.Close(); err != nil {
		return err
	}
	f, err := to.Dir.Open(to.Name, Read|NoFollow)
	if err != nil {
		return err
	}
	l, err := e.format.Open(f, OpenOptions{Ext: extension(to.Name), Cache: NewCache(layerCache)})
	if err != nil {
		return err
	}
	is, _ := identity(l, false)
	return errors.Join(e.inheritTracking(to, is), l.Close())
}
