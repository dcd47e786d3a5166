package ops

import (
	"context"
	"errors"
	"fmt"
)

// opValidateReservations asks whether disks in a place can be shared by machines
// that reserve them.
var opValidateReservations = &Op{
	Name:    "validate-persistent-reservations",
	Method:  "ValidatePersistentReservationSupport",
	Brief:   "ask whether the host's storage keeps SCSI persistent reservations",
	Service: true,
	Args:    []Arg{{Name: "Path", Kind: ArgPlace, Required: true, Bare: true, Help: "an image, or a folder in which one may be placed"}},
	Run:     runValidateReservations,
}

// Storage is what lies below a file or a directory of the host.
type Storage struct {
	FileSystem string // its type: "ext4"; a hexadecimal number where it has no name here
	// Cluster tells that machines share the file system and keep one another's
	// reservations of files in it.
	Cluster bool
	Devices []ReservingDevice // block devices below, as far as they were asked; none of a cluster's
}

// ReservingDevice is a block device that was asked for its reservations.
type ReservingDevice struct {
	Path          string // "/dev/sda"
	Registrations int    // keys that are registered with it now
	Err           error  // why it keeps none; nil when it does
}

// StorageProber is a [Dir] that can tell what its files lie on.
type StorageProber interface {
	// Storage looks at a file or directory and the block devices below, which it asks
	// with SCSI PERSISTENT RESERVE IN alone: nothing is registered or changed.
	Storage(name string) (Storage, error)
}

// runValidateReservations says yes where the file system is a cluster's, and where
// every block device below answers. Whoever says no says what was looked at.
func runValidateReservations(_ context.Context, r *Request) (Fields, error) {
	ref, err := r.placeOrFolder("path", r.Args.Text("Path"))
	if err != nil {
		return nil, err
	}
	if _, err := ref.Dir.Stat(ref.Name); err != nil {
		return nil, err
	}
	prober, ok := ref.Dir.(StorageProber)
	if !ok {
		return nil, noReservations(ref, "what lies below cannot be asked")
	}
	r.Begin(0)
	s, err := prober.Storage(ref.Name)
	if err != nil {
		return nil, err
	}
	return s.fields(ref), s.judge(ref)
}

func (s *Storage) fields(r Ref) Fields {
	f := Fields{{"Path", r.Path()}, {"FileSystem", s.FileSystem}, {"Cluster", s.Cluster}}
	type device struct {
		Path          string
		Registrations *int
		Error         string `json:",omitempty"`
	}
	list := []device{}
	for i := range s.Devices {
		d := device{Path: s.Devices[i].Path}
		if err := s.Devices[i].Err; err != nil {
			d.Error = err.Error()
		} else {
			d.Registrations = &s.Devices[i].Registrations
		}
		list = append(list, d)
	}
	return append(f, Field{"Devices", list})
}

// judge is nil where reservations are kept. That a device may not be asked counts as
// its no: who goes on in spite of that must not rely on what nobody has seen.
func (s *Storage) judge(r Ref) error {
	switch {
	case s.Cluster:
		return nil
	case len(s.Devices) == 0:
		return noReservations(r, "on "+s.FileSystem+", no cluster file system, and no block device below it")
	}
	for _, d := range s.Devices {
		if d.Err != nil {
			return noReservations(r, fmt.Sprintf("on %s, no cluster file system, which lies on %s: %v", s.FileSystem, d.Path, d.Err))
		}
	}
	return nil
}

func noReservations(r Ref, why string) error {
	return Errorf(errors.ErrUnsupported, 0, "%s: %s", r.Path(), why)
}
