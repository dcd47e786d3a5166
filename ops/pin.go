package ops

// pin is how an attachment holds its image: a handle that keeps it open, and
// keeps away what an attached image does not allow. It goes where the handle goes.
type pin struct {
	write  bool
	device bool // there is a block device, or will be in a moment
	// direct tells that the device lies on the host file: what it writes passes this
	// program by, so nobody else may change, or rely on, a byte of the file.
	direct bool
	// adopted tells that the device is there already: nobody is asked whether one lies
	// on the file.
	adopted bool
}

// openPinned opens an image for an attachment; as [Library.Open], and ErrBusy also
// where it is attached already, where a guest has it open for writing, and, for a
// direct device that writes, where anybody has it open at all.
func (l *Library) openPinned(r Ref, p pin) (*Handle, error) {
	h := &Handle{lib: l, ref: r, write: p.write, pin: &p}
	a := Read
	if p.write {
		a = Write
	}
	if err := h.open(r, a); err != nil {
		return nil, err
	}
	return h, nil
}

// askPinLocked says what an attachment does not allow, and what does not allow an
// attachment.
func (h *Handle) askPinLocked() error {
	use, path := &h.engine().use, h.engine().ref.Path()
	p := use.pin
	switch {
	case h.device:
		if p == nil || !p.device || p.direct {
			return Errorf(ErrChanged, 0, "%s is not the image that is being attached", path)
		}
		return nil
	case h.pin != nil:
		return h.mayPinLocked()
	case p == nil:
		return nil
	case p.direct && (p.write || h.terms != nil):
		return Errorf(ErrBusy, StatusOwned, "%s is attached, with a device on the file itself", path)
	case h.terms == nil && h.write && (p.device || !p.write):
		return Errorf(ErrBusy, StatusOwned, "%s is attached: what is written goes through its device", path)
	}
	return nil
}

func (h *Handle) mayPinLocked() error {
	use, path := &h.engine().use, h.engine().ref.Path()
	alone := h.pin.direct && h.pin.write
	switch {
	case use.pin != nil:
		return Errorf(ErrBusy, StatusOwned, "%s is attached already", path)
	case use.writers > 0:
		return Errorf(ErrBusy, StatusParentOpen, "%s is open for writing", path)
	case h.pin.direct && use.operation != "":
		return h.engine().operated(use.operation)
	case alone && use.children > 0:
		return Errorf(ErrBusy, StatusParentOpen, "%s is the parent of an image that is open", path)
	case alone && use.refs > 1:
		return Errorf(ErrBusy, StatusOwned, "%s is open", path)
	}
	return nil
}

// countPinLocked notes that the handle's engine is attached, or is not any more;
// and which handles are a device's.
func (h *Handle) countPinLocked(by int) {
	use := &h.engine().use
	if h.device {
		use.devices += by
	}
	switch {
	case h.pin == nil:
	case by > 0:
		use.pin = h.pin
	default:
		use.pin = nil
	}
}

// pinOnly lets a pin go on without a device: guests may do what it kept them from.
func (h *Handle) pinOnly() {
	h.lib.mu.Lock()
	defer h.lib.mu.Unlock()
	h.pin.device, h.pin.direct = false, false
	h.lib.freedLocked()
}

// deviceGone waits a moment until the handles of a device that was taken away are
// closed: the mount hears of that late.
func (h *Handle) deviceGone() error {
	return h.lib.whenFree(func() error {
		if h.engine().use.devices > 0 {
			return Errorf(ErrBusy, 0, "%s: its device is not closed yet", h.engine().ref.Path())
		}
		return nil
	})
}
