package ops

// Attachment is an image that is attached: a disk of this machine, or pinned only.
type Attachment struct {
	Number   uint32 // of its file in .vhdfs/mounted/; from 1, never given twice by one service
	Image    Ref    // by the name under which it was attached
	ID       FileID // of the file of that name: of a set the set's own
	Device   string // "/dev/loop0"; "" where it is only pinned
	ReadOnly bool
	Optical  bool // an ISO
}

// Attachments is who attaches images of a library: a mount.
type Attachments interface {
	// Attached are the images that are attached now, in the order of their numbers.
	// It takes no lock of the library and does no I/O.
	Attached() []Attachment
}

// SetAttachments tells the library who attaches its images, once, before anybody
// asks.
func (l *Library) SetAttachments(a Attachments) { l.attached.Store(&a) }

// Attached are the images of the library that are attached, in the order of their
// numbers.
func (l *Library) Attached() []Attachment {
	if a := l.attached.Load(); a != nil {
		return (*a).Attached()
	}
	return nil
}

// AttachedAs is how an image is attached, by whatever name: false where it is not,
// and where there is no such image.
func (l *Library) AttachedAs(r Ref) (Attachment, bool) {
	list := l.Attached()
	if len(list) == 0 {
		return Attachment{}, false
	}
	st, err := r.Dir.Stat(r.Name)
	for _, a := range list {
		if err == nil && st.ID == a.ID || err != nil && r.Path() == a.Image.Path() {
			return a, true
		}
	}
	return Attachment{}, false
}

// MountedStorageImage is Msvm_MountedStorageImage. Its four keys are the address of a
// disk on a SCSI bus: what a loop device does not have is the number of the
// attachment here, its bytes from the highest down.
type MountedStorageImage struct {
	InstanceID          *string // null in the service too
	Caption             string
	Description         string
	ElementName         string
	InstallDate         *string
	Name                string // absolute host path of the image
	OperationalStatus   []*uint16
	StatusDescriptions  []string
	Status              string
	HealthState         uint16
	CommunicationStatus *uint16
	DetailedStatus      *uint16
	OperatingStatus     *uint16
	PrimaryStatus       *uint16
	Type                uint16 // 0 a disk, 1 an ISO
	Access              uint16 // 1 read-only, 2 read and write
	PortNumber          uint8
	PathId              uint8
	TargetId            uint8
	Lun                 uint8
	PnpDevicePath       string // the block device; "" where there is none
}

// Msvm_MountedStorageImage.Access.
const (
	accessReadOnly  = 1
	accessReadWrite = 2
)

// Describe is the attachment as the service's class.
func (a Attachment) Describe() *MountedStorageImage {
	const name, healthy = "Mounted Storage Image", 5
	m := &MountedStorageImage{
		Caption:            name,
		Description:        "Information about a mounted storage image.",
		ElementName:        name,
		Name:               a.Image.Path(),
		OperationalStatus:  []*uint16{nil},
		StatusDescriptions: []string{"OK"},
		Status:             "OK",
		HealthState:        healthy,
		Access:             accessReadWrite,
		PortNumber:         uint8(a.Number >> 24),
		PathId:             uint8(a.Number >> 16),
		TargetId:           uint8(a.Number >> 8),
		Lun:                uint8(a.Number),
		PnpDevicePath:      a.Device,
	}
	if a.Optical {
		m.Type = 1
	}
	if a.ReadOnly {
		m.Access = accessReadOnly
	}
	return m
}
