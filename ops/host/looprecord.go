package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// RunDir is where root's services keep what is to last until the machine starts anew: a
// record of every device that was laid, and mount points of services for one image.
//
// The driver tells the name of a device only together with attributes of its
// file, which nobody answers once the daemon of that file's mount is dead. So what
// such a device is called is looked up here.
const RunDir = "/run/vhdfs"

// loopRecord is the content of RunDir/DEVICE.SEQUENCE. The sequence is the number
// that the kernel gave this use of the device: no use of any disk has it again until
// the machine starts anew, so a record is never taken for one of a device that
// somebody else made since.
type loopRecord struct {
	Boot     string // of the machine, as the kernel names it
	Name     string // that the driver keeps for the device
	ReadOnly bool
}

// recordLoop writes down what an open device was just made into. Where there is no
// place for it, or no such number (before Linux 5.15), the device is known by what the
// driver says alone. A crash before it leaves such a device, too.
func recordLoop(device string, c *unix.LoopConfig) error {
	sequence, boot, err := loopUse(device)
	if err != nil {
		return nowhere(err)
	}
	b, err := json.Marshal(loopRecord{
		Boot: boot, Name: unix.ByteSliceToString(c.Info.File_name[:]), ReadOnly: c.Info.Flags&unix.LO_FLAGS_READ_ONLY != 0,
	})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(RunDir, 0o700); err != nil {
		return nowhere(err)
	}
	dropRecords(device)
	name := recordName(device, sequence)
	half := name + ".new" // a name that nobody looks for
	if err := os.WriteFile(half, b, 0o600); err != nil {
		_ = os.Remove(half) // the first error says why
		return nowhere(err)
	}
	return os.Rename(half, name)
}

// nowhere turns the ways in which a machine has no place for records into no error.
func nowhere(err error) error {
	for _, none := range []error{fs.ErrNotExist, fs.ErrPermission, unix.EROFS, unix.ENOTDIR} {
		if errors.Is(err, none) {
			return nil
		}
	}
	return err
}

// recordOf is what is written down of this use of a device, which the caller holds
// open so that it stays this one; false where nothing is.
func recordOf(device string) (loopRecord, bool) {
	sequence, boot, err := loopUse(device)
	if err != nil {
		return loopRecord{}, false
	}
	b, err := os.ReadFile(recordName(device, sequence))
	if err != nil {
		return loopRecord{}, false
	}
	var r loopRecord
	return r, json.Unmarshal(b, &r) == nil && r.Boot == boot
}

// dropRecords forgets the uses of a device that have ended: all that are recorded, when
// the present one is not yet.
func dropRecords(device string) {
	list, err := filepath.Glob(filepath.Join(RunDir, filepath.Base(device)+".*"))
	if err != nil {
		return // the pattern is ours
	}
	for _, name := range list {
		_ = os.Remove(name) // it proves nothing
	}
}

func recordName(device, sequence string) string {
	return filepath.Join(RunDir, filepath.Base(device)+"."+sequence)
}

// loopUse is the number of the present use of a device, and the present run of the
// machine.
func loopUse(device string) (sequence, boot string, err error) {
	s, err := os.ReadFile("/sys/block/" + filepath.Base(device) + "/diskseq")
	if err != nil {
		return "", "", err
	}
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", "", fmt.Errorf("this run of the machine: %w", err)
	}
	return strings.TrimSpace(string(s)), strings.TrimSpace(string(b)), nil
}
