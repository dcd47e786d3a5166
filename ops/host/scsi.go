package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// scsiResult is how a device ended a command.
type scsiResult struct {
	status     uint8  // of the device: 0 is good
	hostStatus uint16 // of the way to it: 0 is good
	sense      [32]byte
	senseLen   int
	received   int // bytes of data
}

// SCSI: commands, statuses and sense (SPC-4).
const (
	persistentReserveIn = 0x5e
	readKeys            = 0x00

	statusGood           = 0x00
	statusCheckCondition = 0x02
	statusConflict       = 0x18

	senseIllegalRequest = 0x5
	ascInvalidCommand   = 0x20
)

// registrations is how many keys are registered with a device, which answers that only
// if it keeps reservations. The error says what it answered instead.
func (b blockLayer) registrations(device string) (int, error) {
	data := make([]byte, 8+8*8) // a header and some keys
	command := make([]byte, 10)
	command[0], command[1] = persistentReserveIn, readKeys
	binary.BigEndian.PutUint16(command[7:], uint16(len(data)))
	r, err := b.send(device, command, data)
	switch {
	case errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP):
		return 0, fmt.Errorf("takes no SCSI commands (SG_IO: %w)", err)
	case err != nil:
		return 0, fmt.Errorf("SCSI PERSISTENT RESERVE IN: %w", err)
	}
	return r.registrations(data)
}

func (r *scsiResult) registrations(data []byte) (int, error) {
	const header = 8 // generation, length of all keys
	switch {
	case r.hostStatus != 0:
		return 0, fmt.Errorf("SCSI PERSISTENT RESERVE IN: host status %#x", r.hostStatus)
	case r.status == statusGood && r.received >= header:
		return int(binary.BigEndian.Uint32(data[4:]) / 8), nil
	case r.status == statusGood:
		return 0, fmt.Errorf("SCSI PERSISTENT RESERVE IN: an answer of %d bytes, want %d at least", r.received, header)
	case r.status == statusConflict:
		return 0, errors.New("SCSI PERSISTENT RESERVE IN: reservation conflict: another machine has it by the older RESERVE command")
	case r.status != statusCheckCondition:
		return 0, fmt.Errorf("SCSI PERSISTENT RESERVE IN: status %#x", r.status)
	}
	key, asc, ascq := r.senseKey()
	if key == senseIllegalRequest && asc == ascInvalidCommand {
		return 0, errors.New("does not know SCSI PERSISTENT RESERVE IN")
	}
	return 0, fmt.Errorf("SCSI PERSISTENT RESERVE IN: sense key %#x, code %#x/%#x", key, asc, ascq)
}

// senseKey reads sense data in either format.
func (r *scsiResult) senseKey() (key, asc, ascq uint8) {
	s := r.sense[:min(max(r.senseLen, 0), len(r.sense))]
	switch {
	case len(s) >= 14 && s[0]&0x7e == 0x70: // fixed
		return s[2] & 0xf, s[12], s[13]
	case len(s) >= 4 && s[0]&0x7e == 0x72: // descriptors
		return s[1] & 0xf, s[2], s[3]
	}
	return 0, 0, 0
}

// sgIO is struct sg_io_hdr of the kernel.
type sgIO struct {
	interfaceID    int32
	dxferDirection int32
	cmdLen         uint8
	mxSbLen        uint8
	iovecCount     uint16
	dxferLen       uint32
	dxfer          unsafe.Pointer
	cmd            unsafe.Pointer
	sb             unsafe.Pointer
	timeout        uint32 // milliseconds
	flags          uint32
	packID         int32
	usrPtr         uintptr
	status         uint8
	maskedStatus   uint8
	msgStatus      uint8
	sbLenWr        uint8
	hostStatus     uint16
	driverStatus   uint16
	resid          int32
	duration       uint32
	info           uint32
}

// sendSCSI sends a command that reads data to a device, by SG_IO.
func sendSCSI(device string, command, data []byte) (r scsiResult, err error) {
	const (
		ioctlSGIO        = 0x2285
		fromDevice       = -3
		patience         = 5000
		interfaceVersion = 'S'
	)
	err = withDevice(device, unix.O_RDONLY, func(fd int) error {
		var pins runtime.Pinner
		defer pins.Unpin()
		for _, p := range []*byte{&data[0], &command[0], &r.sense[0]} {
			pins.Pin(p)
		}
		h := sgIO{
			interfaceID: interfaceVersion, dxferDirection: fromDevice, timeout: patience,
			cmdLen: uint8(len(command)), cmd: unsafe.Pointer(&command[0]),
			dxferLen: uint32(len(data)), dxfer: unsafe.Pointer(&data[0]),
			mxSbLen: uint8(len(r.sense)), sb: unsafe.Pointer(&r.sense[0]),
		}
		if _, _, no := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ioctlSGIO, uintptr(unsafe.Pointer(&h))); no != 0 {
			return no
		}
		r.status, r.hostStatus = h.status, h.hostStatus
		r.senseLen, r.received = int(h.sbLenWr), len(data)-int(h.resid)
		return nil
	})
	return r, err
}
