package view

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

// class is a class of the service: to a line a property, its CIM type, with "?" where
// it may have no value, and the values that it may have, as JSON: one, several with "|"
// between them, or a range "0..10"; without them any of the type.
type class string

const imageManagementService class = `
	InstanceID string
	Caption string "Hyper-V Image Management Service"
	Description string "Provides Image Management servicing for Hyper-V"
	ElementName string "Hyper-V Image Management Service"
	InstallDate datetime?
	OperationalStatus uint16[] [2]
	StatusDescriptions string[] ["OK"]
	Status string? null
	HealthState uint16 5
	CommunicationStatus uint16? null
	DetailedStatus uint16? null
	OperatingStatus uint16? null
	PrimaryStatus uint16? null
	EnabledState uint16 2
	OtherEnabledState string? null
	RequestedState uint16 12
	EnabledDefault uint16 2
	TimeOfLastStateChange datetime
	AvailableRequestedStates uint16[]? null
	TransitioningToState uint16? null
	SystemCreationClassName string "Msvm_ComputerSystem"
	SystemName string "here"
	CreationClassName string "Msvm_ImageManagementService"
	Name string "vhdsvc"
	PrimaryOwnerName string? null
	PrimaryOwnerContact string? null
	StartMode string? null
	Started boolean true`

const mountedStorageImage class = `
	InstanceID string? null
	Caption string "Mounted Storage Image"
	ElementName string "Mounted Storage Image"
	Description string "Information about a mounted storage image."
	InstallDate datetime?
	Name string "/vms/a.vhdx"
	OperationalStatus uint16?[] [null]
	StatusDescriptions string[] ["OK"]
	Status string "OK"
	HealthState uint16 5
	CommunicationStatus uint16? null
	DetailedStatus uint16? null
	OperatingStatus uint16? null
	PrimaryStatus uint16? null
	Type uint16 0|1
	Access uint16 1|2
	PortNumber uint8
	PathId uint8
	TargetId uint8
	Lun uint8
	PnpDevicePath string`

const storageJob class = `
	Cancellable boolean
	Child string?
	Parent string?
	ErrorSummaryDescription string
	JobCompletionStatusCode uint32
	JobType uint16 0..9
	InstanceID string
	Caption string
	Description string
	ElementName string
	Name string
	JobState uint16 2..12|32768
	JobStatus string
	PercentComplete uint16 0..100
	ErrorCode uint16 0|32768..32789
	ErrorDescription string
	StartTime datetime?
	TimeSubmitted datetime
	ScheduledStartTime datetime?
	UntilTime datetime?
	ElapsedTime interval
	TimeOfLastStateChange datetime
	TimeBeforeRemoval interval "00000000000500.000000:000"
	DeleteOnCompletion boolean
	HealthState uint16 5
	OperationalStatus uint16[]
	StatusDescriptions string[]
	Status string? null
	LocalOrUtcTime uint16 1|2
	RecoveryAction uint16 0..5
	OtherRecoveryAction string?
	JobRunTimes uint32?
	RunMonth uint8? null|0..11
	RunDay sint8? null|-31..31
	RunDayOfWeek sint8? null|-7..7
	RunStartInterval datetime?
	Notify string?
	Owner string
	Priority uint32?
	CommunicationStatus uint16? null
	DetailedStatus uint16? null
	OperatingStatus uint16? null
	PrimaryStatus uint16? null`

// What the service says of a job that is fine, that failed, and that was cancelled.
const (
	fine class = `
	OperationalStatus uint16[] [2]
	StatusDescriptions string[] ["OK"]
	ErrorCode uint16 0
	ErrorDescription string ""
	JobCompletionStatusCode uint32 0`
	failure class = `
	JobState uint16 10
	OperationalStatus uint16[] [6]
	StatusDescriptions string[] ["Error"]
	ErrorCode uint16 32768..32789`
	stopped class = `
	JobState uint16 8
	OperationalStatus uint16[] [10]
	StatusDescriptions string[] ["Stopped"]
	ErrorCode uint16 32775`
)

// beyondStorageJob is what status.json has besides.
const beyondStorageJob class = `
	Job string
	Operation string
	Image string
	Request string
	Process uint32
	BytesDone uint64
	BytesInAll uint64?
	BytesPerSecond uint64
	SecondsLeft uint64?
	Answer object?`

const cimError class = `
	Message string
	MessageID string
	MessageArguments string[]
	OwningEntity string
	ErrorSource string
	ErrorSourceFormat uint16 0
	OtherErrorSourceFormat string?
	ErrorType uint16 0..10
	OtherErrorType string?
	PerceivedSeverity uint16 0|2..5
	ProbableCause uint16 0..130
	ProbableCauseDescription string?
	RecommendedActions string[]
	CIMStatusCode uint32 1|2|4|6|7|11|13
	CIMStatusCodeDescription string`

// The documents of the service's classes have their properties, no other ones, each
// of its type and with a value that the service gives it.
func TestClasses(t *testing.T) {
	started := make(chan struct{})
	goOn := make(chan struct{})
	running := job(t, func(_ context.Context, r *ops.Request) (ops.Fields, error) {
		r.Begin(1000)
		close(started)
		<-goOn
		return nil, nil
	})
	<-started
	defer func() { close(goOn); running.Wait(context.Background()) }()
	failed := job(t, func(_ context.Context, r *ops.Request) (ops.Fields, error) {
		r.Begin(0)
		return ops.Fields{{Name: "Child", Value: "/vms/a"}, {Name: "Parent", Value: "b"}},
			errors.Join(ops.Errorf(ops.ErrParentMissing, ops.StatusParentNotFound, "b"), syscall.EIO)
	})
	failed.Wait(context.Background())
	completed := job(t, func(context.Context, *ops.Request) (ops.Fields, error) { return nil, nil })
	completed.Wait(context.Background())
	refused := job(t, func(context.Context, *ops.Request) (ops.Fields, error) { return nil, ops.ErrUsage })
	refused.Wait(context.Background())
	cancelled := job(t, func(context.Context, *ops.Request) (ops.Fields, error) { return nil, context.Canceled })
	cancelled.Wait(context.Background())
	list := NewJobErrors(failed)
	require.Len(t, list, 2)

	for name, tt := range map[string]struct {
		doc   any
		want  class
		state class // what this one says besides
	}{
		"service.json":                {NewService("here", time.Unix(0, 0)), imageManagementService, ""},
		"mounted.json":                {ops.Attachment{Number: 1, Image: ref("a.vhdx"), Device: "/dev/loop7"}.Describe(), mountedStorageImage, `PnpDevicePath string "/dev/loop7"`},
		"mounted.json, pinned":        {ops.Attachment{Number: 1 << 31, Image: ref("a.vhdx"), ReadOnly: true}.Describe(), mountedStorageImage, `PnpDevicePath string ""`},
		"status.json, running":        {NewStorageJob(running), storageJob + beyondStorageJob, fine},
		"status.json, completed":      {NewStorageJob(completed), storageJob + beyondStorageJob, fine},
		"status.json, failed":         {NewStorageJob(failed), storageJob + beyondStorageJob, failure},
		"status.json, cancelled":      {NewStorageJob(cancelled), storageJob + beyondStorageJob, stopped},
		"status.json, never begun":    {NewStorageJob(refused), storageJob + beyondStorageJob, failure},
		"errors.json, with advice":    {list[0], cimError, ""},
		"errors.json, without advice": {list[1], cimError, ""},
	} {
		t.Run(name, func(t *testing.T) {
			doc := unfold(t, render(t, tt.doc))
			require.NoError(t, tt.state.of(doc))
			require.NoError(t, tt.want.of(doc))
			for _, name := range tt.want.names() {
				delete(doc, name)
			}
			require.Empty(t, doc, "properties that the class does not have")
		})
	}
	for _, none := range []*ops.Job{running, completed} {
		require.Equal(t, "null\n", render(t, NewJobErrors(none)))
	}
}

// A document that differs from its class is seen.
func TestClassesAreSharp(t *testing.T) {
	const c class = `
	Name string "a"|"b"
	Count uint8? null|2..5|7
	List uint16?[] [null]`
	for doc, want := range map[string]string{
		`{"Name":"a","Count":null,"List":[null]}`: "",
		`{"Name":"b","Count":7,"List":[null]}`:    "",
		`{"Count":7,"List":[null]}`:               "Name is missing",
		`{"Name":"c","Count":7,"List":[null]}`:    `Name: "c" is none of "a"|"b"`,
		`{"Name":1,"Count":7,"List":[null]}`:      "Name: 1 is no string",
		`{"Name":"a","Count":"7","List":[null]}`:  `Count: "7" is no uint8`,
		`{"Name":"a","Count":6,"List":[null]}`:    "Count: 6 is none of null|2..5|7",
		`{"Name":"a","Count":256,"List":[null]}`:  "Count: 256 is no uint8",
		`{"Name":"a","Count":7.0,"List":[null]}`:  "Count: 7.0 is no uint8",
		`{"Name":"a","Count":7,"List":[]}`:        "List: [] is none of [null]",
		`{"Name":"a","Count":7,"List":null}`:      "List: null is no array",
		`{"Name":null,"Count":7,"List":[null]}`:   "Name: null is no string",
	} {
		err := c.of(unfold(t, doc))
		if want == "" {
			require.NoError(t, err, doc)
			continue
		}
		require.EqualError(t, err, want, doc)
	}
	for _, wrong := range []class{`T datetime "20000101000000.000000+000x"`, `T datetime "20000101000000.000000:000"`, `T interval "00000000000129.000005+000"`} {
		_, value, _ := strings.Cut(string(wrong), ` "`)
		require.Error(t, wrong.of(map[string]json.RawMessage{"T": json.RawMessage(`"` + value)}), wrong)
	}
}

// unfold takes a document apart.
func unfold(t *testing.T, doc string) map[string]json.RawMessage {
	t.Helper()
	var p map[string]json.RawMessage
	require.NoError(t, json.Unmarshal([]byte(doc), &p))
	return p
}

// of tells what a document does not have as the class says.
func (c class) of(doc map[string]json.RawMessage) error {
	for line := range strings.Lines(strings.TrimSpace(string(c))) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		kind, values, limited := strings.Cut(rest, " ")
		raw, ok := doc[name]
		if !ok {
			return fmt.Errorf("%s is missing", name)
		}
		var v bytes.Buffer
		if err := json.Compact(&v, raw); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := is(v.String(), kind); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if limited && !slices.ContainsFunc(strings.Split(values, "|"), func(want string) bool { return within(v.String(), want) }) {
			return fmt.Errorf("%s: %s is none of %s", name, &v, values)
		}
	}
	return nil
}

func (c class) names() []string {
	var list []string
	for line := range strings.Lines(strings.TrimSpace(string(c))) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		list = append(list, name)
	}
	return list
}

// within tells whether a JSON value is the one that is wanted, or in the range.
func within(v, want string) bool {
	from, to, isRange := strings.Cut(want, "..")
	if !isRange {
		return v == want
	}
	n, err := strconv.ParseInt(v, 10, 64)
	low, lowErr := strconv.ParseInt(from, 10, 64)
	high, highErr := strconv.ParseInt(to, 10, 64)
	return errors.Join(err, lowErr, highErr) == nil && n >= low && n <= high
}

// texts are the forms of what is a string in JSON.
var texts = map[string]*regexp.Regexp{
	"string":   regexp.MustCompile(`(?s)^".*"$`),
	"datetime": regexp.MustCompile(`^"\d{14}\.\d{6}[+-]\d{3}"$`), // yyyymmddHHMMSS.mmmmmm+UUU
	"interval": regexp.MustCompile(`^"\d{14}\.\d{6}:000"$`),      // ddddddddHHMMSS.mmmmmm:000
}

// limits are those of the integers.
var limits = map[string]string{
	"uint8": "0..255", "sint8": "-128..127", "uint16": "0..65535", "uint32": "0..4294967295", "uint64": "0..9223372036854775807",
}

// is tells why a JSON value is not of a CIM type.
func is(v, kind string) error {
	kind, nullable := strings.CutSuffix(kind, "?")
	if nullable && v == "null" {
		return nil
	}
	if element, ok := strings.CutSuffix(kind, "[]"); ok {
		var list []json.RawMessage
		if err := json.Unmarshal([]byte(v), &list); err != nil || list == nil {
			return fmt.Errorf("%s is no array", v)
		}
		for _, e := range list {
			if err := is(string(e), element); err != nil {
				return err
			}
		}
		return nil
	}
	ok := false
	switch {
	case kind == "boolean":
		ok = v == "true" || v == "false"
	case kind == "object":
		ok = strings.HasPrefix(v, "{")
	case texts[kind] != nil:
		ok = texts[kind].MatchString(v)
	default:
		ok = within(v, limits[kind])
	}
	if !ok {
		return fmt.Errorf("%s is no %s", v, kind)
	}
	return nil
}

// The four keys of an attachment are its own.
func TestKeysOfAnAttachment(t *testing.T) {
	m := ops.Attachment{Number: 0x01020304, Image: ref("a.iso"), ReadOnly: true, Optical: true}.Describe()
	require.Equal(t, [4]uint8{1, 2, 3, 4}, [4]uint8{m.PortNumber, m.PathId, m.TargetId, m.Lun})
	require.Equal(t, [2]uint16{1, 1}, [2]uint16{m.Type, m.Access})
	m = ops.Attachment{Number: 5, Image: ref("a.vhdx")}.Describe()
	require.Equal(t, [4]uint8{0, 0, 0, 5}, [4]uint8{m.PortNumber, m.PathId, m.TargetId, m.Lun})
	require.Equal(t, [2]uint16{0, 2}, [2]uint16{m.Type, m.Access})
}
