package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"vhdfs/ops"
	"vhdfs/ops/view"
)

// statusPatience is how long a mount may take to tell of itself: one that hangs must
// not hide the others.
const statusPatience = 3 * time.Second

// mountStatus is what a mount of this machine tells of itself.
type mountStatus struct {
	MountPoint string
	Images     string // host path of what it shows
	User       uint32 // whose mount it is
	PID        int    // of its daemon; 0 where that does not answer
	Version    string
	Started    *string
	Attached   []ops.MountedStorageImage
	Jobs       []jobLine // that run
	Error      string    `json:",omitempty"` // why the rest is not known
	dead       bool      // its daemon is
}

// jobLine is what matters here of a job's status.json.
type jobLine struct {
	Job             string
	Operation       string
	Image           string
	JobState        uint16
	JobStatus       string
	PercentComplete uint16
	BytesDone       int64
	BytesInAll      *int64
	SecondsLeft     *int64
}

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:     "status",
		Usage:    "list the mounts of this machine, what is attached and which jobs run",
		Category: "mount",
		Flags:    []cli.Flag{jsonFlag()},
		Action: func(c *cli.Context) error {
			if _, err := positional(c); err != nil {
				return err
			}
			mounts, err := vhdfsMounts()
			if err != nil {
				return err
			}
			list := statusOf(mounts, statusPatience)
			if c.Bool("json") {
				return view.Encode(c.App.Writer, struct{ Mounts []mountStatus }{list})
			}
			return statusText(c.App.Writer, list)
		},
	}
}

// statusOf asks all mounts at once. Those that do not answer in time are left to
// themselves until this process ends.
func statusOf(mounts []mountLine, patience time.Duration) []mountStatus {
	list := make([]mountStatus, len(mounts))
	var all sync.WaitGroup
	for i, m := range mounts {
		all.Go(func() {
			asked := make(chan mountStatus, 1)
			go func() { asked <- statusOfMount(m) }()
			select {
			case list[i] = <-asked:
			case <-time.After(patience):
				list[i] = newMountStatus(m)
				list[i].Error = "its daemon does not answer"
			}
		})
	}
	all.Wait()
	return list
}

func newMountStatus(m mountLine) mountStatus {
	s := mountStatus{MountPoint: m.point, Images: m.source, Attached: []ops.MountedStorageImage{}, Jobs: []jobLine{}}
	if id, err := strconv.ParseUint(m.user, 10, 32); err == nil {
		s.User = uint32(id)
	}
	return s
}

func statusOfMount(m mountLine) mountStatus {
	s := newMountStatus(m)
	err := s.ask(filepath.Join(m.point, ".vhdfs"))
	switch {
	case errors.Is(err, unix.ENOTCONN):
		s.dead = true
		s.Error = "its daemon is dead; vhdfs umount takes the mount away"
	case errors.Is(err, os.ErrPermission):
		s.Error = "only its user can look"
	case err != nil:
		s.Error = ops.Sentence(err)
	}
	return s
}

// ask reads what the service of a mount shows.
func (s *mountStatus) ask(service string) error {
	var d daemonInfo
	if err := readJSON(filepath.Join(service, "daemon.json"), &d); err != nil {
		return err
	}
	s.PID, s.Version, s.Started = d.PID, d.Version, d.Started
	mounted, err := os.ReadDir(filepath.Join(service, "mounted"))
	if err != nil {
		return err
	}
	for _, e := range mounted {
		var a ops.MountedStorageImage
		err := readJSON(filepath.Join(service, "mounted", e.Name()), &a)
		if errors.Is(err, os.ErrNotExist) {
			continue // detached meanwhile
		}
		if err != nil {
			return err
		}
		s.Attached = append(s.Attached, a)
	}
	return s.askJobs(filepath.Join(service, "jobs"))
}

func (s *mountStatus) askJobs(dir string) error {
	jobs, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range jobs {
		var j jobLine
		err := readJSON(filepath.Join(dir, e.Name(), "status.json"), &j)
		if errors.Is(err, os.ErrNotExist) {
			continue // forgotten meanwhile
		}
		if err != nil {
			return err
		}
		if !ops.JobState(j.JobState).Ended() {
			s.Jobs = append(s.Jobs, j)
		}
	}
	slices.SortFunc(s.Jobs, func(a, b jobLine) int {
		return cmp.Or(cmp.Compare(len(a.Job), len(b.Job)), cmp.Compare(a.Job, b.Job))
	})
	return nil
}

func readJSON(name string, to any) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, to); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func statusText(w io.Writer, list []mountStatus) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "no mounts")
		return err
	}
	for _, s := range list {
		daemon := fmt.Sprintf("process %d", s.PID)
		if s.Error != "" {
			daemon = s.Error
		}
		fmt.Fprintf(w, "%s shows %s, user %d, %s\n", printable(s.MountPoint), printable(s.Images), s.User, daemon)
		t := columns(w)
		for _, a := range s.Attached {
			fmt.Fprintf(t, "  attached\t%s\t%s\t%s\n", cmp.Or(a.PnpDevicePath, "no device"), accessText(a.Access), printable(a.Name))
		}
		for _, j := range s.Jobs {
			fmt.Fprintf(t, "  job %s\t%s\t%d %%\t%s\n", j.Job, j.Operation, j.PercentComplete, printable(j.Image))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func accessText(access uint16) string {
	if access == 1 {
		return "read-only"
	}
	return "read-write"
}
