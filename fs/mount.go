package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"vhdfs/ops"
)

const (
	// maxRequest is the greatest READ and WRITE in bytes: what kernels give at most.
	maxRequest = 1 << 20
	// maxBackground is how many asynchronous requests the kernel keeps in flight.
	// It is per mount: a dozen hung ones must not stop every image.
	maxBackground = 1024
)

// mount is one mounted library.
type mount struct {
	opts  Options
	lib   *ops.Library
	log   *logrus.Logger
	owner fuse.Owner
	dev   uint64          // device number of the mount
	ctx   context.Context // ends with the mount: operations stop then
	jobs  *ops.Jobs
	// attacher is nil where nothing can be attached.
	attacher *ops.Attacher
	oplog    *ops.OpLog
	counted  counters
	started  time.Time
	stopped  chan struct{} // closed when a request to stop has succeeded

	mu struct {
		sync.Mutex
		disks     map[ops.FileID]*disk
		forgotten []forgotten // oldest first
		controls  map[controlKey]*controlState
		sizes     map[sizeKey]knownSize
		lastOps   map[string]*ops.Answer // by the image's path
		refused   map[refusal]time.Time  // when an unlink in a snapshot was refused
		turn      int                    // of the last answer
		lastGen   uint32                 // the last generation given to a view
		closed    bool
		stopping  bool // a request to stop is under way, or has succeeded
	}
}

// Server is a mounted file system.
type Server struct {
	m      *mount
	loop   *loop
	cancel context.CancelFunc
	done   chan struct{}
}

// Mount mounts o.Library on o.MountPoint and serves it until it is unmounted.
// When it returns the mount is ready. As root it calls mount(2) itself, else it
// needs fusermount3. Cancelling ctx ends running operations, not the mount.
func Mount(ctx context.Context, o Options) (*Server, error) {
	mountPoint, err := filepath.Abs(o.MountPoint)
	if err != nil {
		return nil, err
	}
	o.MountPoint = mountPoint
	m := newMount(o)
	s := &Server{m: m, done: make(chan struct{})}
	m.ctx, s.cancel = context.WithCancel(ctx)
	m.jobs = ops.NewJobs(m.ctx, m.brokenInvariant)
	if err := s.connect(); err != nil {
		s.cancel()
		return nil, fmt.Errorf("mount %s: %w", o.MountPoint, err)
	}
	m.lib.SetCaches(m)
	go s.serve()
	if err := s.ready(); err != nil {
		_ = s.Detach() // the first error says why
		return nil, fmt.Errorf("mount %s: %w", o.MountPoint, err)
	}
	m.attach()
	return s, nil
}

// connect mounts and answers the kernel's first request.
func (s *Server) connect() error {
	o := s.m.mountOptions()
	dev, err := openDevice(s.m.opts.MountPoint, &o)
	if err != nil {
		return err
	}
	raw := gofs.NewNodeFS(&dir{m: s.m}, &gofs.Options{
		MountOptions:    o,
		NullPermissions: true,
		ServerCallbacks: dev,
		Logger:          s.m.libraryLog(),
	})
	s.loop = newLoop(dev, fuse.NewProtocolServer(raw, &o), s.m.log)
	if err := s.loop.begin(); err != nil {
		return errors.Join(err, unmount(s.m.opts.MountPoint, true), dev.close())
	}
	return nil
}

func newMount(o Options) *mount {
	if o.Panics == nil {
		o.Panics = new(atomic.Int64)
	}
	if o.Source == "" {
		o.Source = "vhdfs"
	}
	m := &mount{
		opts:    o,
		lib:     o.Library,
		log:     o.Log,
		owner:   fuse.Owner{Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())},
		ctx:     context.Background(),
		started: time.Now(),
		stopped: make(chan struct{}),
	}
	m.oplog = ops.NewOpLog(o.Library.Top(".").Dir, o.ReadOnly)
	m.mu.disks = map[ops.FileID]*disk{}
	m.mu.lastOps = map[string]*ops.Answer{}
	m.mu.sizes = map[sizeKey]knownSize{}
	m.mu.controls = map[controlKey]*controlState{}
	return m
}

// ready waits until the kernel serves the mount and tells who has to know.
func (s *Server) ready() error {
	if err := refusePoll(s.m.opts.MountPoint); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(s.m.opts.MountPoint, &st); err != nil {
		return err
	}
	s.m.dev = st.Dev
	if s.m.opts.OnMounted != nil {
		s.m.opts.OnMounted(st.Dev)
	}
	if os.Geteuid() == 0 {
		if err := tuneBDI(st.Dev); err != nil {
			s.m.log.WithError(err).Debug("write-back parameters of the mount stay as they are")
		}
	}
	return nil
}

// mountOptions are what kernel and go-fuse are told. ATOMIC_O_TRUNC is never
// asked for, so that truncation comes as a SETATTR that can be refused; data is
// invalidated by us alone (ExplicitDataCacheControl), or every read(2) would
// ask for attributes first; without extended attributes the kernel does not ask
// for security.capability before every write.
func (m *mount) mountOptions() fuse.MountOptions {
	o := fuse.MountOptions{
		FsName:                   m.opts.Source,
		Name:                     "vhdfs",
		AllowOther:               m.opts.AllowOther,
		Options:                  []string{"default_permissions"},
		MaxWrite:                 maxRequest,
		MaxBackground:            maxBackground,
		DisableXAttrs:            true,
		DisableReadDirPlus:       true,
		ExplicitDataCacheControl: true,
		ExtraCapabilities:        fuse.CAP_DIRECT_IO_ALLOW_MMAP | fuse.CAP_ASYNC_DIO,
		DisabledCapabilities:     fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_PASSTHROUGH,
		PanicHandler:             m.panicked,
		Logger:                   m.libraryLog(),
	}
	if m.opts.Cache == Writeback {
		o.ExtraCapabilities |= fuse.CAP_WRITEBACK_CACHE
	}
	return o
}

// libraryLog takes what go-fuse has to say.
func (m *mount) libraryLog() *stdlog.Logger {
	return stdlog.New(logWriter{m.log}, "", 0)
}

type logWriter struct{ log *logrus.Logger }

var _ io.Writer = logWriter{}

func (w logWriter) Write(p []byte) (int, error) {
	w.log.Debugf("fuse: %q", p)
	return len(p), nil
}
