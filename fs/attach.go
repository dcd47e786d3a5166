package fs

import (
	"context"
	"path/filepath"

	"vhdfs/ops"
)

// devices are the block devices of a mount: those of the machine, laid and taken
// away apart. The kernel may wait for answers of this very daemon meanwhile: it
// opens raw, looks for partitions, and writes back what it holds.
type devices struct {
	ops.BlockDevices
	m *mount
}

var _ ops.Devices = devices{}

// LayRaw implements [ops.Devices]. What opens raw from a thread of the daemon's is
// the device: see content.open.
func (d devices) LayRaw(image ops.Ref, t ops.DeviceTerms) (string, error) {
	t.On = ops.FileID{Dev: d.m.dev}
	return d.LayFile(filepath.Join(d.m.opts.MountPoint, image.Name, "raw"), t)
}

// LayFile implements [ops.Devices].
func (d devices) LayFile(path string, t ops.DeviceTerms) (device string, err error) {
	err = apart(func() error {
		device, err = d.Lay(path, t)
		return err
	})
	return device, err
}

// Remove implements [ops.Devices].
func (d devices) Remove(device string, force bool) error {
	return apart(func() error { return d.BlockDevices.Remove(device, force) })
}

// attach lets the mount attach images, and settles what an earlier one left.
func (m *mount) attach() {
	if m.opts.Loops == nil {
		return
	}
	m.attacher = ops.NewAttacher(m.lib, devices{m.opts.Loops, m}, m.opts.ReadOnly)
	notes, err := m.attacher.Adopt()
	for _, n := range notes {
		m.log.Info("devices of a service that was killed: " + n)
	}
	if err != nil {
		m.log.WithError(err).Error("devices of a service that was killed")
	}
}

// detachAll takes every device away; by force also those that are in use, which
// fail from then on.
func (m *mount) detachAll(force bool) error {
	if m.attacher == nil {
		return nil
	}
	return m.attacher.DetachAll(force)
}

// attachAgain lets images be attached, after a detachAll that was not the end.
func (m *mount) attachAgain() {
	if m.attacher != nil {
		m.attacher.Reopen()
	}
}

// DetachDevices detaches every image. ErrBusy names the devices that are in use;
// unless forced the service goes on with those.
func (s *Server) DetachDevices(force bool) error { return s.m.detachAll(force) }

// Emptied has a value after the last image that was attached is not any more.
func (s *Server) Emptied() <-chan struct{} {
	if s.m.attacher == nil {
		return nil
	}
	return s.m.attacher.Emptied()
}

// StopEmpty ends the service as a request to stop does, if nothing is attached, no job
// runs and no raw is open. Else it answers ErrBusy, and whether an image is attached, and
// the service goes on.
func (s *Server) StopEmpty() (attached bool, err error) {
	m := s.m
	if m.attacher != nil && len(m.attacher.Attached()) > 0 {
		return true, errAttached
	}
	if err := m.beginStop(ops.StopTerms{Dry: true}); err != nil { // it waits: images can be attached meanwhile
		return false, err
	}
	if m.attacher != nil && !m.attacher.CloseEmpty() {
		return true, errAttached
	}
	for _, j := range m.jobs.List() {
		if !j.Status().State.Ended() {
			err = ops.Errorf(ops.ErrBusy, 0, "job %d, %s, runs", j.ID, j.Op.Name)
		}
	}
	if err == nil {
		err = m.stop(context.Background(), ops.StopTerms{})
	}
	if err != nil {
		m.attachAgain()
	}
	return false, err
}

var errAttached = ops.Errorf(ops.ErrBusy, 0, "an image is attached")
