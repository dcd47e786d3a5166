package ops

import (
	"context"
	"strconv"
	"strings"
)

// StopTerms are the terms on which a service ends. When its Stop returns nil no
// operation runs, every image is flushed and detached, and the service ends as soon
// as nobody can be waiting for the answer any more. ErrBusy where raw files are
// open, unless Force; nothing has changed then.
type StopTerms struct {
	Force bool // whoever uses it
	Dry   bool // only look whether it may end
}

var argForce = Arg{Name: "Force", Kind: ArgBool, Default: "false", Help: "ends it though raw files are open: they are flushed, and fail from then on"}

// opStart answers: a service whose files can be written runs.
var opStart = &Op{
	Name:    "start",
	Method:  "StartService",
	Brief:   "answer that the service runs",
	Service: true,
	Sync:    true,
	Run:     func(_ context.Context, r *Request) (Fields, error) { return nil, r.running() },
}

var opStop = &Op{
	Name:    "stop",
	Method:  "StopService",
	Brief:   "end jobs, flush and detach every image, unmount",
	Service: true,
	Sync:    true,
	Plans:   true,
	Args:    []Arg{argForce},
	Run:     func(ctx context.Context, r *Request) (Fields, error) { return nil, r.stop(ctx) },
}

var opRequestStateChange = &Op{
	Name:    "request-state-change",
	Method:  "RequestStateChange",
	Brief:   "stop the service (shutdown), or answer that it runs (enabled)",
	Service: true,
	Sync:    true,
	Plans:   true,
	Args: []Arg{
		{Name: "RequestedState", Short: "state", Kind: ArgText, Required: true, Bare: true, Help: "enabled (2) or shutdown (4), by name or number; the service has no other state"},
		{Name: "TimeoutPeriod", Short: "timeout", Kind: ArgText, Default: "0", Help: "an interval, of which 0 is the only one: the service knows no time-out"},
		argForce,
	},
	Run: runRequestStateChange,
}

// Values of RequestStateChange.RequestedState that have a name.
var requestedStates = []Word{
	{"enabled", 2}, {"disabled", 3}, {"shutdown", 4}, {"offline", 6}, {"test", 7},
	{"defer", 8}, {"quiesce", 9}, {"reboot", 10}, {"reset", 11},
}

// runRequestStateChange answers ErrState for the states that the service does not
// take on, and for a time-out that it cannot keep.
func runRequestStateChange(ctx context.Context, r *Request) (Fields, error) {
	const enabled, shutDown = 2, 4
	state, err := requestedState(r.Args.Text("RequestedState"))
	if err != nil {
		return nil, err
	}
	period := r.Args.Text("TimeoutPeriod")
	if strings.Trim(period, "0.:") != "" {
		return nil, Errorf(ErrState, 0, "timeout=%q: the service knows no time-out", period)
	}
	switch state {
	case enabled:
		return nil, r.running()
	case shutDown:
		return nil, r.stop(ctx)
	}
	return nil, Errorf(ErrState, 0, "state=%q: the service is enabled (2) or shut down (4)", r.Args.Text("RequestedState"))
}

func requestedState(s string) (uint16, error) {
	for _, w := range requestedStates {
		if strings.EqualFold(s, w.Text) {
			return w.Number, nil
		}
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, Errorf(ErrUsage, 0, "state=%q: want enabled, shutdown or a number up to 65535", s)
	}
	return uint16(n), nil
}

// running fails where no service carries the request out.
func (r *Request) running() error {
	if r.Stop == nil {
		return Errorf(ErrState, 0, "no service runs here: a mount is one")
	}
	return nil
}

func (r *Request) stop(ctx context.Context) error {
	if err := r.running(); err != nil {
		return err
	}
	return r.Stop(ctx, StopTerms{Force: r.Args.Bool(argForce.Name), Dry: r.Dry})
}
