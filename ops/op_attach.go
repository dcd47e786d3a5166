package ops

import (
	"context"
	"errors"
)

const (
	deviceLoop = "loop"
	deviceNone = "none"
)

// opAttach makes a disk of this machine of an image.
var opAttach = &Op{
	Name:    "attach",
	Method:  "AttachVirtualHardDisk",
	Brief:   "make the image a block device of this machine",
	JobType: 7,
	Plans:   true,
	Args: []Arg{
		{Name: "ReadOnly", Kind: ArgBool, Help: "keeps anything from being written; default false, for an ISO true"},
		{Name: "AssignDriveLetter", Short: "partscan", Kind: ArgBool, Default: "true", Help: "asks the kernel to show partitions as devices of their own"},
		{Name: "Direct", Kind: ArgBool, Default: "false",
			Help: "lays the device on the file itself: a fixed disk in order, or an ISO; nothing else can be done with the image meanwhile"},
		{Name: "Device", Kind: ArgWord, Words: []Word{{deviceLoop, 0}, {deviceNone, 1}}, Default: deviceLoop,
			Help: "none only keeps the image open, and others from writing the file"},
	},
	Can: canAttach,
	Run: runAttach,
}

// opDetach is a method of the service's Msvm_MountedStorageImage.
var opDetach = &Op{
	Name:   "detach",
	Method: "DetachVirtualHardDisk",
	Brief:  "take the block device of an attached image away; nothing where there is none",
	Plans:  true,
	Device: true,
	Can:    canAttach,
	Run:    runDetach,
}

// canAttach: a floppy is not known to the service as a disk.
func canAttach(f *Found) bool {
	return f.Err == nil && f.itself().Format.Number != FormatVFD
}

// errNoService is the answer where nobody would hold the image.
func errNoService() error {
	return Errorf(errors.ErrUnsupported, 0, "only a service keeps an image attached, and none shows this one: vhdfs mount, or vhdfs attach, which starts one")
}

// attachTerms reads what was asked for.
func attachTerms(r *Request) (AttachTerms, error) {
	t := AttachTerms{Way: WayRaw, ReadOnly: r.Args.Bool("ReadOnly"), Scan: r.Args.Bool("AssignDriveLetter"), Dry: r.Dry}
	found, err := r.Library.Inspect(r.Image)
	if err == nil {
		err = found.Err
	}
	if err != nil {
		return t, err
	}
	switch {
	case !canAttach(found):
		return t, Errorf(errors.ErrUnsupported, StatusWrongType, "%s: %s images are not attached", r.Image.Path(), found.itself().Format.Name)
	case found.itself().Format.Number == FormatISO && !r.Args.Has("ReadOnly"):
		t.ReadOnly = true
	case found.itself().Format.Number == FormatISO && !t.ReadOnly:
		return t, Errorf(errors.ErrUnsupported, StatusWrongType, "%s: an ISO is attached read-only", r.Image.Path())
	}
	none, direct := r.Args.Text("Device") == deviceNone, r.Args.Bool("Direct")
	switch {
	case none && direct:
		return t, Errorf(ErrUsage, 0, "attach: direct=true asks for a device, device=none for none")
	case none:
		t.Way = WayNone
	case direct:
		t.Way = WayDirect
	}
	return t, nil
}

// runAttach answers the device, and the way that was taken; where there is no
// device that was asked for, why.
func runAttach(_ context.Context, r *Request) (Fields, error) {
	if r.Attacher == nil {
		return nil, errNoService()
	}
	t, err := attachTerms(r)
	if err != nil {
		return nil, err
	}
	r.Begin(0)
	a, way, why, err := r.Attacher.Attach(r.Image, t)
	if err != nil {
		return nil, err
	}
	f := Fields{{"Device", a.Device}, {"Way", string(way)}, {"ReadOnly", a.ReadOnly}}
	if !t.Dry {
		f = append(f, Field{"Image", a.Describe()})
	}
	if why != nil {
		f = append(f, Field{"Warnings", []string{"no device: " + Sentence(why)}})
	}
	return f, nil
}

// runDetach answers what is detached; nothing where nothing was attached.
func runDetach(_ context.Context, r *Request) (Fields, error) {
	if r.Attacher == nil {
		return nil, errNoService()
	}
	if r.Dry {
		a, _ := r.Library.AttachedAs(r.Image)
		return Fields{{"Device", a.Device}}, nil
	}
	r.Begin(0)
	a, found, err := r.Attacher.Detach(r.Image, false)
	if !found {
		return nil, err
	}
	return Fields{{"Device", a.Device}}, err
}
