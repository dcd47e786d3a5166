package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"vhdfs/fs"
	"vhdfs/ops"
	"vhdfs/ops/host"
)

// Names of the operations that a service of their own is started and ended for.
const (
	opAttach = "attach"
	opDetach = "detach"
)

// ownMounts begins the names of mount points of services that were started to attach
// one image.
const ownMounts = "vhdfs-attach-"

// needsService tells whether the request is nothing that this process could do before
// it ends.
func (q *request) needsService() bool {
	return q.op.Name == opAttach && q.args.Waits() && !q.args.Dry()
}

// attachAlone starts a service for the image, in the background, and asks it. The
// service ends at once when this process has ended and nothing is attached, and else
// when the image is detached.
func (q *request) attachAlone(ctx context.Context, c *cli.Context, p *progress) (_ []byte, err error) {
	removeDead(q.mounts)
	mnt, err := ownMountPoint()
	if err != nil {
		return nil, err
	}
	theirs, leash, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, os.Remove(mnt))
	}
	args := []string{"mount", "--daemon", "--log-level=warning"}
	for _, flag := range []string{"search", "allow-parent"} {
		for _, dir := range c.StringSlice(flag) {
			args = append(args, "--"+flag+"="+dir)
		}
	}
	daemon, err := startDaemon(c.App.ErrWriter, append(args, q.image, mnt), theirs)
	err = errors.Join(err, theirs.Close())
	if daemon == nil {
		return nil, errors.Join(err, leash.Close(), removeIfThere(mnt))
	}
	m := mountLine{point: mnt, source: q.image}
	f := &control{mount: m, file: filepath.Join(mnt, filepath.Base(q.image), q.op.File())}
	answer, err := f.do(ctx, q, p)
	err = errors.Join(err, leash.Close())
	if err == nil && succeeded(answer) {
		return answer, daemon.Release()
	}
	_, werr := daemon.Wait() // nothing is attached: it ends
	return answer, errors.Join(err, werr)
}

func succeeded(answer []byte) bool {
	var head struct{ Errno string }
	return json.Unmarshal(answer, &head) == nil && head.Errno == ""
}

// ownMountPoint makes the mount point of a service of one's own, in a folder that
// nobody else can look into.
func ownMountPoint() (string, error) {
	if os.Geteuid() == 0 {
		if err := os.MkdirAll(host.RunDir, 0o700); err != nil {
			return "", err
		}
		return os.MkdirTemp(host.RunDir, ownMounts)
	}
	return os.MkdirTemp(os.Getenv("XDG_RUNTIME_DIR"), ownMounts) // "": where temporary files are
}

func removeIfThere(dir string) error {
	err := os.Remove(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// own tells whether the mount is that of a service which was started to attach an
// image.
func (m mountLine) own() bool { return strings.HasPrefix(filepath.Base(m.point), ownMounts) }

// removeDead takes away what is left of services like that whose daemons were killed,
// but for those of other users. Their devices go when the next service begins.
func removeDead(mounts []mountLine) {
	own := slices.DeleteFunc(slices.Clone(mounts), func(m mountLine) bool { return !m.own() })
	for _, m := range statusOf(own, statusPatience) {
		if m.dead && unmountDead(m.MountPoint) == nil {
			_ = os.Remove(m.MountPoint) // an empty directory is no harm
		}
	}
}

// endPatience is how long a detach waits for the end of the service whose only image
// is not attached any more; while somebody has raw open it goes on.
const endPatience = 5 * time.Second

// awaitEnd waits a while for the end of a service that has nothing attached any more,
// so that the image can be attached again at once. It does nothing for one that a
// user mounted.
func (m mountLine) awaitEnd() error {
	if !m.own() {
		return nil
	}
	for late := time.Now().Add(endPatience); time.Now().Before(late); time.Sleep(10 * time.Millisecond) {
		there, err := isMountPoint(m.point)
		if err != nil || !there {
			return err
		}
	}
	return nil
}

// underDevice is the image that is attached as the device that was typed; what is no
// device stands for itself.
func (q *request) underDevice(folder, name string) (string, string, error) {
	device := filepath.Join(folder, name)
	st, err := os.Stat(device)
	if err != nil || st.Mode()&os.ModeDevice == 0 {
		return folder, name, err
	}
	unasked := ""
	for _, s := range statusOf(q.mounts, statusPatience) {
		for _, a := range s.Attached {
			if a.PnpDevicePath == device {
				return filepath.Dir(a.Name), filepath.Base(a.Name), nil
			}
		}
		if s.Error != "" {
			unasked += fmt.Sprintf("; of %s nothing is known: %s", s.MountPoint, s.Error)
		}
	}
	left, err := host.Loops{}.Ours()
	if err != nil {
		return "", "", err
	}
	for _, d := range left {
		if d.Path == device && d.Way == ops.WayDirect && d.Dead {
			return filepath.Dir(d.File), filepath.Base(d.File), nil
		}
	}
	return "", "", ops.Errorf(os.ErrNotExist, 0, "%s: no image is attached as this device%s", device, unasked)
}

// follow ends a service when its leash has been let go and nothing is attached, nor
// used in any other way.
func follow(server *fs.Server, leash *os.File, gone <-chan struct{}) {
	_, _ = io.Copy(io.Discard, leash) // until it is closed, or cannot be read
	for {
		attached, err := server.StopEmpty()
		if err == nil {
			return
		}
		again := time.After(100 * time.Millisecond)
		if attached {
			again = nil
		}
		select {
		case <-gone:
			return
		case <-server.Emptied():
		case <-again:
		}
	}
}

// here are the block devices of this machine for a process that ends soon: it plans,
// and takes away what killed ones left.
type here struct{ host.Loops }

var _ ops.Devices = here{}

// LayRaw implements [ops.Devices].
func (here) LayRaw(ops.Ref, ops.DeviceTerms) (string, error) { return "", errEnds }

// LayFile implements [ops.Devices].
func (here) LayFile(string, ops.DeviceTerms) (string, error) { return "", errEnds }

var errEnds = ops.Errorf(errors.ErrUnsupported, 0, "nothing stays attached when this command ends")
