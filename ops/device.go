package ops

// Way is how an attached image can be used.
type Way string

// Ways.
const (
	WayRaw    Way = "raw"    // a block device over the raw file of the mount
	WayDirect Way = "direct" // a block device on the host file itself
	WayNone   Way = "none"   // it is only kept open
)

// DeviceTerms are what a block device is to be.
type DeviceTerms struct {
	Way      Way
	ReadOnly bool
	Scan     bool // for partitions
	// Sector is the logical sector size in bytes: a power of two from 512 up to a page.
	Sector uint32
	// Offset and Length are the part of the file that is the disk; Length 0: all
	// from Offset on, now and when the file grows.
	Offset, Length int64
	// On is the file that the device is to lie on; where Ino is 0 any of the file
	// system Dev.
	On FileID
}

// Device is a block device that this program laid, or an earlier run of it.
type Device struct {
	Path     string // "/dev/loop3"
	Way      Way
	ReadOnly bool
	On       FileID
	File     string // host path of the file, as the kernel shows it
	// Dead tells that the program that laid it has ended.
	Dead bool
}

// BlockDevices lays block devices on files: the loop devices of this machine. Its
// methods do nothing but system calls on files that they open and close again,
// so that a mount may call them where its own files cannot be used.
type BlockDevices interface {
	// Permitted says why no device can be made, with ErrForbidden; nil where it can.
	Permitted() error
	// Lay makes a device of the file at path and answers the device's path.
	// ErrForbidden where that is not permitted; nothing is left after an error.
	Lay(path string, t DeviceTerms) (string, error)
	// Remove makes what was written to a device durable in its file, as far as the
	// file goes, and takes the device away. ErrBusy, with nothing changed, while
	// another program uses it, after a second's waiting for those that only have a
	// look; with force it goes when they close it. A device that this program did not
	// lay, nor one that has ended, stays, and is no error: it is not ours any more.
	Remove(device string, force bool) error
	// User says who uses a device: "is mounted on" where it, or a partition of it, is.
	User(device string) string
	// Ours are the devices that vhdfs laid.
	Ours() ([]Device, error)
}

// Devices is [BlockDevices] as a mount has them: it knows where raw is.
type Devices interface {
	Permitted() error
	// LayRaw makes a device of the raw file that shows an image.
	LayRaw(image Ref, t DeviceTerms) (string, error)
	// LayFile makes one of a host file.
	LayFile(path string, t DeviceTerms) (string, error)
	Remove(device string, force bool) error
	User(device string) string
	Ours() ([]Device, error)
}

// Straight is a Layer that can tell whether its disk stands in its file in one
// piece.
type Straight interface {
	// Straight is the offset in the file of the disk's first byte, where every other
	// byte of the disk follows it in order and is stored, not only by chance.
	// errors.ErrUnsupported, with the place and what is there, where it is not so.
	Straight() (int64, error)
}
