package view

import "time"

// Service is Msvm_ImageManagementService: its 28 properties. Those that are
// null here are null in the service.
type Service struct {
	InstanceID               string
	Caption                  string
	Description              string
	ElementName              string
	InstallDate              *string
	OperationalStatus        []uint16
	StatusDescriptions       []string
	Status                   *string
	HealthState              uint16
	CommunicationStatus      *uint16
	DetailedStatus           *uint16
	OperatingStatus          *uint16
	PrimaryStatus            *uint16
	EnabledState             uint16
	OtherEnabledState        *string
	RequestedState           uint16
	EnabledDefault           uint16
	TimeOfLastStateChange    *string
	AvailableRequestedStates []uint16
	TransitioningToState     *uint16
	SystemCreationClassName  string
	SystemName               string
	CreationClassName        string
	Name                     string
	PrimaryOwnerName         *string
	PrimaryOwnerContact      *string
	StartMode                *string
	Started                  bool
}

// NewService describes a service on the named host that runs since started.
func NewService(host string, started time.Time) *Service {
	const enabled, notApplicable, ok = 2, 12, 5
	return &Service{
		InstanceID:              "Microsoft:" + host + `\vhdsvc`,
		Caption:                 "Hyper-V Image Management Service",
		Description:             "Provides Image Management servicing for Hyper-V",
		ElementName:             "Hyper-V Image Management Service",
		OperationalStatus:       []uint16{2},
		StatusDescriptions:      []string{"OK"},
		HealthState:             ok,
		EnabledState:            enabled,
		RequestedState:          notApplicable,
		EnabledDefault:          enabled,
		TimeOfLastStateChange:   DateTime(started),
		SystemCreationClassName: "Msvm_ComputerSystem",
		SystemName:              host,
		CreationClassName:       "Msvm_ImageManagementService",
		Name:                    "vhdsvc",
		Started:                 true,
	}
}
